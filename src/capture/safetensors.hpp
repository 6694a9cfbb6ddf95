// SPDX-License-Identifier: Apache-2.0
// The safetensors container: 8 bytes of header length, a JSON header, the bytes. Every number in the header
// is hostile until checked.
#pragma once

#include <map>
#include <string>

#include "src/core/tensor.hpp"

namespace sinkscope {

struct Safetensors {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

// Throws InputError (the file, the value seen, the value wanted) for anything malformed: a header longer than
// the file or than 100 MB, bad JSON, unknown dtypes, offsets that overlap, leave gaps, pass the end or
// disagree with the shape.
Safetensors read_safetensors(const std::string& path);

// Tensors in the order of the map, aligned header, through a temporary name.
void write_safetensors(const std::string& path, const Safetensors& content, bool overwrite);

}  // namespace sinkscope
