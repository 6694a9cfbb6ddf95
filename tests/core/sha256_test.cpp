// SPDX-License-Identifier: Apache-2.0
// The examples of FIPS 180 (NIST's SHA-256 example values), and that chunks do not matter.
#include "src/core/sha256.hpp"

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

#include "gtest/gtest.h"

namespace sinkscope {
namespace {

std::string hash_of(std::string_view text, std::size_t chunk) {
  Sha256 hash;
  for (; !text.empty(); text.remove_prefix(std::min(chunk, text.size()))) {
    hash.update(std::as_bytes(std::span(text.substr(0, chunk))));
  }
  return hash.hex();
}

TEST(Sha256, OfThePublishedExamples) {
  EXPECT_EQ(hash_of("", 64), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_of("abc", 64), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 64),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash_of(std::string(1'000'000, 'a'), 1000),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, DoesNotDependOnTheChunks) {
  for (std::size_t length = 0; length < 200; ++length) {
    const std::string text(length, 'x');
    const std::string whole = hash_of(text, 1000);
    for (const std::size_t chunk : {1, 3, 63, 64, 65}) EXPECT_EQ(hash_of(text, chunk), whole) << length;
  }
}

}  // namespace
}  // namespace sinkscope
