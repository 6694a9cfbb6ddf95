// SPDX-License-Identifier: Apache-2.0
#include <Eigen/Core>
#include <chrono>
#include <thread>

#include "src/bench/bench.hpp"

namespace sinkscope {

double seconds_of_eigen_gemm(int n, int count, int threads) {
  // Eigen's products run on the thread that calls them: each thread has its own, as the truth's threads do.
  std::vector<Eigen::MatrixXd> a, b, c;
  for (int t = 0; t < threads; ++t) {
    a.emplace_back(Eigen::MatrixXd::Random(n, n));
    b.emplace_back(Eigen::MatrixXd::Random(n, n));
    c.emplace_back(Eigen::MatrixXd::Zero(n, n));
  }
  const auto work = [&](int t) {
    const auto i = static_cast<std::size_t>(t);
    for (int repeat = 0; repeat < count; ++repeat) c[i].noalias() += a[i] * b[i];
  };
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(work, t);
  work(0);
  for (std::thread& thread : pool) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace sinkscope
