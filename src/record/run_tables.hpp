// SPDX-License-Identifier: Apache-2.0
// The columns of a run's tables: one list per table that writing and reading both go through.
#pragma once

#include <string>
#include <vector>

#include "src/record/run_record.hpp"

namespace sinkscope {

template <typename Row>
struct Columns {
  struct Of {
    const char *name, *units, *meaning;
  };
  struct Integer : Of {
    std::int64_t Row::*value;
  };
  struct Real : Of {
    double Row::*value;
  };
  struct Text : Of {
    std::string Row::*value;
  };
  struct Heads : Of {  // [layer, head]
    std::vector<double> Row::*value;
  };
  struct Blocks : Of {  // q_NAME, k_NAME, ... outside_NAME
    BlockValues Row::*value;
  };
  const char* table;
  std::vector<Row> TrainingRun::*rows;
  std::vector<Integer> integers;
  std::vector<Real> reals;
  std::vector<Text> texts;
  std::vector<Heads> heads;
  std::vector<Blocks> blocks;
};

extern const Columns<StepRow> kStepColumns;
extern const Columns<ReplayRow> kReplayColumns;
extern const Columns<SpikeRow> kSpikeColumns;
extern const Columns<CauseRow> kCauseColumns;

// A part of BlockValues that is an array: its prefix in a column's name, and what a row has after its layers.
struct BlockPart {
  const char* name;
  std::vector<double> BlockValues::*values;
  std::int64_t RunShape::*heads;  // null: one number per layer
  const char* axis;               // of these heads: "head" or "kv_head"
};
extern const std::vector<BlockPart> kBlockParts;

// How many a layer has: 1 of a part without heads.
std::int64_t heads_of(const BlockPart& part, const RunShape& shape);

}  // namespace sinkscope
