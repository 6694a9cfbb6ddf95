// SPDX-License-Identifier: Apache-2.0
// Student's t distribution, for the test of the signed bias.
#pragma once

namespace sinkscope {

// The probability that |t| is at least this large by chance, with `degrees` degrees of freedom. 1 for t = 0;
// NaN for NaN.
double student_two_sided(double t, double degrees);

}  // namespace sinkscope
