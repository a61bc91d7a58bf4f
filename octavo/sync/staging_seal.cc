// The ledger of a staging: what has come, what is missing, what stays.

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/row_slices.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

// Missing tensors that an error names before it only counts.
constexpr int kMaxNamed = 5;

// Up to kMaxNamed names, and how many more there are.
class NameList {
 public:
  void Add(const std::string& name) {
    if (++count_ <= kMaxNamed) {
      text_ += (text_.empty() ? "" : ", ") + name;
    }
  }
  bool empty() const { return count_ == 0; }
  std::string Text() const {
    return text_ + (count_ > kMaxNamed ? fmt::format(" and {} more", count_ - kMaxNamed) : "");
  }

 private:
  int count_ = 0;
  std::string text_;
};

void AddGaps(std::string_view name, const RowLedger& rows, NameList* missing) {
  for (const RowSlice& gap : rows.Gaps()) {
    missing->Add(NameOfSlice(name, gap));
  }
}

}  // namespace

bool Staging::MayBeAbsent(size_t row_idx) const {
  return plan_.spec->weights[row_idx].is_mtp && ledger_[row_idx].IsUntouched() &&
         !(options_.base.has_value() && options_.base->is_held[row_idx]);
}

// Members of a set that shares a scale were encoded together: one of them cannot change alone.
bool Staging::Stays(size_t row_idx) const {
  const auto may_stay = [&](size_t idx) {
    return !options_.may_stay.empty() && options_.may_stay[idx] && ledger_[idx].IsUntouched();
  };
  const int set = plan_.scale_set_of[row_idx];
  if (set < 0) {
    return may_stay(row_idx);
  }
  return std::ranges::all_of(plan_.scale_sets[static_cast<size_t>(set)],
                             [&](int member) { return may_stay(static_cast<size_t>(member)); });
}

Status Staging::CheckComplete() const {
  NameList missing;
  NameList waiting;
  int64_t num_expected = 0;
  for (size_t i = 0; i < ledger_.size(); ++i) {
    const Entry& entry = ledger_[i];
    if (MayBeAbsent(i) || Stays(i)) {
      continue;
    }
    ++num_expected;
    if (entry.is_packed) {
      continue;
    }
    const std::string& name = plan_.table->rows[i].name;
    if (entry.source.IsComplete()) {  // Of its set another one is missing, and named.
      waiting.Add(name);
    } else if (!entry.source.empty()) {
      AddGaps(name, entry.source, &missing);
    } else if (entry.part_rows.empty()) {  // Nothing of it came: its name alone says so.
      missing.Add(plan_.parts[i].front().name);
    }
    for (size_t part = 0; part < entry.part_rows.size(); ++part) {
      const RowLedger& rows = entry.part_rows[part];
      const StoredTensorSpec& spec = plan_.parts[i][part];
      if (rows.empty() && !IsInputScale(spec.part)) {
        missing.Add(spec.name);
      }
      AddGaps(spec.name, rows, &missing);
    }
  }
  AddGaps(plan_.tied_head, head_, &missing);
  if (missing.empty()) {
    return OkStatus();
  }
  return InvalidArgument("the update is incomplete: expected {} weights, got {}; missing {}{}",
                         num_expected, num_staged_, missing.Text(),
                         waiting.empty()
                             ? std::string()
                             : fmt::format("; of sets that share a scale wait {}", waiting.Text()));
}

// Copies what the update leaves as it is.
Status Staging::CarryOver(const ModelWeights* live) {
  NameList missing;
  carried_over_.clear();
  for (size_t i = 0; i < ledger_.size(); ++i) {
    if (MayBeAbsent(i) || !Stays(i)) {
      continue;
    }
    PackedMatrix& matrix = weights_->matrices[i];
    const std::string& name = plan_.table->rows[i].name;
    if (matrix.codes.empty() && (live == nullptr || live->matrices[i].codes.empty())) {
      missing.Add(name);
      continue;
    }
    if (matrix.codes.empty()) {
      ASSIGN_OR_RETURN(matrix, Clone(live->matrices[i]));
    }
    carried_over_.push_back(name);
  }
  return missing.empty() ? OkStatus()
                         : InvalidArgument(
                               "the update is incomplete: there are no live weights to leave as "
                               "they are, and missing {}",
                               missing.Text());
}

std::vector<bool> Staging::Brought() const {
  std::vector<bool> brought;
  for (const Entry& entry : ledger_) {
    brought.push_back(entry.is_packed);
  }
  return brought;
}

std::optional<float> Staging::GivenInputScale(size_t row_idx) const {
  if (ledger_[row_idx].input_scale.has_value()) {
    return ledger_[row_idx].input_scale;
  }
  if (options_.base.has_value() && options_.base->input_scales[row_idx] != 0.0F) {
    return options_.base->input_scales[row_idx];
  }
  return std::nullopt;
}

Status Staging::SetInputScales() {
  for (size_t i = 0; i < ledger_.size(); ++i) {
    const PrecisionRow& row = plan_.table->rows[i];
    const bool is_encoded = !ledger_[i].source.empty() && !options_.base.has_value();
    const bool writes_one = is_encoded && row.format == WeightFormat::kNvfp4;
    weights_->stored_input_scales[i] = GivenInputScale(i).value_or(writes_one ? 1.0F : 0.0F);
  }
  NameList missing;
  for (const std::vector<int>& set : plan_.static_input_sets) {
    float largest = 0.0F;
    for (const int member : set) {
      const auto row_idx = static_cast<size_t>(member);
      const std::vector<StoredTensorSpec>& parts = plan_.parts[row_idx];
      const auto spec = std::ranges::find_if(
          parts, [](const StoredTensorSpec& part) { return IsInputScale(part.part); });
      const std::optional<float> given = GivenInputScale(row_idx);
      // MTP rows are held and never computed with.
      if (!given.has_value() && !plan_.spec->weights[row_idx].is_mtp) {
        missing.Add(spec->name);
      }
      const float scale = given.value_or(0.0F);
      const bool divides = spec->part == StoredPart::kInputDivisor && scale != 0.0F;
      largest = std::max(largest, divides ? 1.0F / scale : scale);
    }
    for (const int member : set) {
      weights_->matrices[static_cast<size_t>(member)].input_scale = largest;
    }
  }
  return missing.empty()
             ? OkStatus()
             : InvalidArgument("static input scales: expected them in the checkpoint, missing {}",
                               missing.Text());
}

Status Staging::Seal(const ModelWeights* live) {
  if (is_sealed_) {
    return OkStatus();
  }
  RETURN_IF_ERROR(CheckComplete());
  RETURN_IF_ERROR(CheckTiedHead());
  RETURN_IF_ERROR(CarryOver(live));
  RETURN_IF_ERROR(SetInputScales());
  RETURN_IF_ERROR(DeriveWeights(*plan_.spec, *options_.backend, weights_.get()));
  is_sealed_ = true;
  return OkStatus();
}

const ModelWeights& Staging::sealed() const {
  CHECK(is_sealed_);
  return *weights_;
}

std::unique_ptr<ModelWeights> Staging::Take() {
  CHECK(is_sealed_);
  return std::move(weights_);
}

void Staging::Return(std::unique_ptr<ModelWeights> weights) {
  CHECK(is_sealed_);
  CHECK(weights_ == nullptr);
  weights_ = std::move(weights);
}

std::unique_ptr<ModelWeights> Staging::TakeUntouched() {
  return num_staged_ == 0 ? std::move(weights_) : nullptr;
}

}  // namespace octavo
