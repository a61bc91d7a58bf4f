#include "octavo/convert/conformance_kit_recognize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/convert/conformance_kit.h"
#include "octavo/convert/conformance_kit_rules.h"
#include "octavo/formats/e4m3.h"

namespace octavo {
namespace {

// The rules of an aspect stand in the order of their enum.
constexpr std::array<RuleText, 3> kScaleRules = {{
    {"divide", "amax / 448"},
    {"reciprocal", "amax * fl(1 / 448)"},
    {"inverse", "1 / fl(448 / amax)"},
}};
constexpr std::array<RuleText, 2> kUe8m0Rules = {{
    {"round-up", "the smallest power of two that is not below amax / 448"},
    {"round-down", "the largest power of two that is not above amax / 448"},
}};
constexpr std::array<RuleText, 9> kFloorRules = {{
    {"1e-10", "amax is at least 1e-10"},
    {"1e-12", "amax is at least 1e-12"},
    {"bf16-1e-12", "amax is at least 1e-12 rounded to BF16"},
    {"1e-4", "amax is at least 1e-4"},
    {"none", "no floor: zeros have scale 0 and NaN codes"},
    {"zero-is-one", "no floor; zeros have scale 1"},
    {"zero-is-eps", "no floor; zeros have the FP32 epsilon, 2^-23, as scale"},
    {"zero-is-bf16-eps", "no floor; zeros have the BF16 epsilon, 2^-7, as scale"},
    {"zero-is-tiny", "no floor; zeros have scale 2^-126"},
}};
constexpr std::array<RuleText, 3> kStoredRules = {{
    {"f32", "the scale is stored in FP32 precision"},
    {"bf16-after", "the scale is rounded to BF16 after the codes were made with the FP32 one"},
    {"bf16-before", "the scale is rounded to BF16 before the codes are made with it"},
}};
constexpr std::array<RuleText, 2> kPaddingRules = {{
    {"zeros", "blocks at the edge hold real values alone"},
    {"last-value", "blocks at the edge are padded with the last value of the matrix"},
}};
constexpr std::array<RuleText, 2> kSharingRules = {{
    {"set", "one amax for all members of a fused set"},
    {"own", "each matrix has its own amax"},
}};
constexpr std::array<RuleText, 4> kFp8ElementRules = {{
    {"divide", "E4M3(x / scale)"},
    {"reciprocal", "E4M3(x * fl(1 / scale))"},
    {"inverse", "E4M3(x * fl(448 / amax))"},
    {"bf16", "E4M3 of the BF16 quotient of x and the scale rounded to BF16"},
}};
constexpr std::array<RuleText, 3> kTieRules = {{
    {"even", "ties go to the even code"},
    {"to-zero", "ties go towards zero"},
    {"away", "ties go away from zero"},
}};
constexpr std::array<RuleText, 3> kZeroSignRules = {{
    {"kept", "negative zeros keep their sign"},
    {"dropped", "no code is a negative zero"},
    {"exact-dropped", "-0 loses its sign; a negative that rounds to zero keeps it"},
}};
constexpr std::array<RuleText, 2> kOverflowRules = {{
    {"saturate", "what is too large becomes 448"},
    {"nan", "what is too large becomes NaN"},
}};
constexpr std::array<RuleText, 4> kMxScaleRules = {{
    {"round-up", "the smallest power of two that is not below amax / 448"},
    {"floor", "2^(floor(log2(amax)) - 8)"},
    {"even", "one more than the floor from a mantissa of 1.75"},
    {"ceil", "2^(ceil(log2(amax)) - 8)"},
}};
constexpr std::array<RuleText, 3> kMxZeroRules = {{
    {"00", "a group of zeros has byte 00"},
    {"01", "a group of zeros has byte 01"},
    {"7f", "a group of zeros has byte 7f, 1"},
}};
constexpr std::array<uint8_t, 3> kMxZeroBytes = {0x00, 0x01, 0x7F};
constexpr std::array<RuleText, 4> kGlobalRules = {{
    {"reciprocal-of-s", "1 / fl(2688 / amax)"},
    {"divide", "amax / 2688"},
    {"bf16", "2688 / amax rounded to BF16, and its reciprocal"},
    {"double-reciprocal", "S = 1 / fl(amax / 2688), and its reciprocal"},
}};
// A file of divisors cannot tell the second form from the first.
constexpr std::array<RuleText, 3> kDivisorRules = {{
    {"reciprocal-of-s", "2688 / amax"},
    {"bf16", "2688 / amax rounded to BF16"},
    {"double-reciprocal", "1 / fl(amax / 2688)"},
}};
constexpr std::array<NvGlobal, 3> kDivisorGlobals = {NvGlobal::kReciprocalOfS, NvGlobal::kBf16,
                                                     NvGlobal::kDoubleReciprocal};
constexpr std::array<RuleText, 3> kZeroSetRules = {{
    {"one", "a matrix of zeros has global scale 1"},
    {"tiny", "a matrix of zeros has the subnormal global scale 1 / FLT_MAX"},
    {"zero", "a matrix of zeros has global scale 0"},
}};
constexpr std::array<RuleText, 5> kGroupRules = {{
    {"s-sixth", "amax * fl(S * fl(1 / 6))"},
    {"six-d", "amax / fl(6 * D)"},
    {"sixth-over-d", "fl(amax / 6) / D"},
    {"bf16-sixth", "amax / 6 rounded to BF16, times S"},
    {"sixth-times-s", "fl(amax / 6) * S"},
}};
constexpr std::array<RuleText, 4> kZeroGroupRules = {{
    {"00", "a group of zeros has scale byte 00"},
    {"38", "a group of zeros has scale byte 38, 1"},
    {"08", "a group of zeros has scale byte 08, 2^-6"},
    {"20", "a group of zeros has scale byte 20, 0.125"},
}};
constexpr std::array<uint8_t, 4> kZeroGroupBytes = {0x00, 0x38, 0x08, 0x20};
constexpr std::array<RuleText, 4> kSmallGroupRules = {{
    {"rounded", "a small group scale is rounded like others, to 00 at the end"},
    {"clamped-08", "group scales are at least 2^-6"},
    {"zero-becomes-38", "a group scale that rounds to zero becomes 1"},
    {"zero-becomes-20", "a group scale that rounds to zero becomes 0.125"},
}};
constexpr std::array<RuleText, 4> kNvElementRules = {{
    {"reciprocal", "E2M1(x * fl(1 / fl(group scale * D)))"},
    {"divide", "E2M1(x / fl(group scale * D))"},
    {"two-reciprocals", "E2M1(x * fl(fl(1 / D) / group scale))"},
    {"divisor", "E2M1(x / fl(group scale / S))"},
}};

struct Aspect {
  std::string_view name;
  std::span<const RuleText> rules;
  size_t ours = 0;
};

// One position in `rules` for each aspect.
using Choice = std::vector<size_t>;
using CountUnexplained = FunctionRef<int64_t(const Choice&)>;

struct Search {
  Choice choice;  // Fewest values unexplained; of several, the one with most rules of ours.
  int64_t num_unexplained = std::numeric_limits<int64_t>::max();
  std::vector<KitRule> rules;
};

bool NextChoice(std::span<const Aspect> aspects, Choice& choice) {
  for (size_t i = aspects.size(); i-- > 0;) {
    if (++choice[i] < aspects[i].rules.size()) {
      return true;
    }
    choice[i] = 0;
  }
  return false;
}

size_t NumOurs(std::span<const Aspect> aspects, const Choice& choice) {
  size_t num_ours = 0;
  for (size_t i = 0; i < aspects.size(); ++i) {
    num_ours += choice[i] == aspects[i].ours ? 1 : 0;
  }
  return num_ours;
}

// Tries every combination.
Search TryAll(std::span<const Aspect> aspects, CountUnexplained count) {
  Search search;
  std::vector<Choice> best;
  Choice choice(aspects.size(), 0);
  do {
    const int64_t num_unexplained = count(choice);
    if (num_unexplained < search.num_unexplained) {
      search.num_unexplained = num_unexplained;
      best.clear();
    }
    if (num_unexplained == search.num_unexplained) {
      best.push_back(choice);
    }
  } while (NextChoice(aspects, choice));
  search.choice =
      *std::ranges::max_element(best, {}, [&](const Choice& one) { return NumOurs(aspects, one); });
  for (size_t i = 0; i < aspects.size(); ++i) {
    const size_t chosen = search.choice[i];
    const RuleText& text = aspects[i].rules[chosen];
    KitRule rule = {.aspect = std::string(aspects[i].name),
                    .rule = std::string(text.name),
                    .means = std::string(text.means),
                    .ours = chosen == aspects[i].ours,
                    .exact = search.num_unexplained == 0,
                    .num_unexplained = search.num_unexplained};
    for (size_t other = 0; other < aspects[i].rules.size(); ++other) {
      // With the other aspects as chosen: what this aspect alone leaves open.
      Choice changed = search.choice;
      changed[i] = other;
      if (other != chosen && std::ranges::find(best, changed) != best.end()) {
        rule.also.emplace_back(aspects[i].rules[other].name);
      }
    }
    search.rules.push_back(std::move(rule));
  }
  return search;
}

void Append(std::vector<KitRule>& rules, std::vector<KitRule> more) {
  std::ranges::move(more, std::back_inserter(rules));
}

bool SameFloat(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

ElementRule ElementRuleOf(size_t ties, size_t zero_sign, size_t overflow = 0) {
  return {.ties = static_cast<TieRule>(ties),
          .zero_sign = static_cast<ZeroSignRule>(zero_sign),
          .overflow = static_cast<OverflowRule>(overflow)};
}

// --- FP8 ----------------------------------------------------------------------------------------

class Fp8Recognizer {
 public:
  explicit Fp8Recognizer(const KitOutput& output)
      : output_(output), powers_of_two_(output.format == "fp8-ue8m0") {}

  std::vector<KitRule> Run() {
    const Fp8Floor own_floor = output_.format == "fp8"           ? Fp8Floor::k1e10
                               : powers_of_two_                  ? Fp8Floor::k1e4
                               : output_.format == "fp8-channel" ? Fp8Floor::kBf16Of1e12
                                                                 : Fp8Floor::k1e12;
    const bool is_tensor = output_.format == "fp8-tensor";
    const bool has_blocks = output_.format == "fp8" || powers_of_two_;
    const std::span<const RuleText> other =
        is_tensor ? std::span<const RuleText>(kSharingRules)
                  : std::span<const RuleText>(kPaddingRules).first(has_blocks ? 2 : 1);
    const std::array<Aspect, 4> aspects = {{
        {"scale", powers_of_two_ ? std::span<const RuleText>(kUe8m0Rules) : kScaleRules},
        {"floor", kFloorRules, static_cast<size_t>(own_floor)},
        {is_tensor ? "sharing" : "padding", other},
        {"stored", std::span<const RuleText>(kStoredRules).first(powers_of_two_ ? 1 : 2)},
    }};
    const auto count = [&](const Choice& choice) {
      return std::ranges::count_if(output_.units, [&](const KitUnit& unit) {
        const float scale = ScaleOf(unit, choice);
        return !SameFloat(unit.scale, choice[3] == 0 ? scale : RoundToBf16(scale));
      });
    };
    scales_ = TryAll(aspects, count);
    RunElements();
    if (!is_tensor && !has_blocks) {
      std::erase_if(scales_.rules, [](const KitRule& rule) { return rule.aspect == "padding"; });
    }
    return std::move(scales_.rules);
  }

 private:
  float AmaxOf(const KitUnit& unit, const Choice& choice) const {
    if (output_.format == "fp8-tensor") {
      const KitTensor& tensor = output_.tensors[unit.tensor_idx];
      return choice[2] == 0 ? tensor.set_amax : tensor.own_amax;
    }
    return choice[2] == 0 ? unit.amax : unit.padded_amax;
  }

  // Before it is rounded for storage.
  float ScaleOf(const KitUnit& unit, const Choice& choice) const {
    const auto floor = static_cast<Fp8Floor>(choice[1]);
    const float amax = AmaxOf(unit, choice);
    return powers_of_two_ ? Ue8m0ScaleOf(amax, static_cast<Ue8m0Round>(choice[0]), floor)
                          : Fp8ScaleOf(amax, static_cast<Fp8Scale>(choice[0]), floor);
  }

  void RunElements() {
    // Codes can be made with a scale that was rounded afterwards only if we know that scale.
    const bool may_differ = scales_.num_unexplained == 0 && scales_.choice[3] != 0;
    constexpr std::array<RuleText, 2> kUsedRules = {{{"stored", ""}, {"unrounded", ""}}};
    const std::array<Aspect, 5> aspects = {{
        {"element", std::span<const RuleText>(kFp8ElementRules).first(powers_of_two_ ? 1 : 4)},
        {"ties", kTieRules},
        {"zero_sign", kZeroSignRules},
        {"overflow", kOverflowRules},
        {"used", std::span<const RuleText>(kUsedRules).first(may_differ ? 2 : 1)},
    }};
    Search codes = TryAll(aspects, [&](const Choice& choice) { return CountCodes(choice); });
    if (may_differ) {
      const size_t stored = codes.choice[4] == 1 ? 1 : 2;
      KitRule& rule = scales_.rules[3];
      rule.rule = kStoredRules[stored].name;
      rule.means = kStoredRules[stored].means;
    }
    codes.rules.pop_back();
    Append(scales_.rules, std::move(codes.rules));
  }

  int64_t CountCodes(const Choice& choice) const {
    const auto element = static_cast<Fp8Element>(choice[0]);
    const auto floor = static_cast<Fp8Floor>(scales_.choice[1]);
    const ElementRule rule = ElementRuleOf(choice[1], choice[2], choice[3]);
    int64_t num_unexplained = 0;
    for (const KitUnit& unit : output_.units) {
      const float scale = choice[4] == 0 ? unit.scale : ScaleOf(unit, scales_.choice);
      const float amax = AmaxOf(unit, scales_.choice);
      for (size_t i = 0; i < unit.values.size(); ++i) {
        const float quotient = Fp8Quotient(unit.values[i], scale, amax, floor, element);
        num_unexplained += EncodeE4m3(quotient, rule) != unit.codes[i] ? 1 : 0;
      }
    }
    return num_unexplained;
  }

  const KitOutput& output_;
  bool powers_of_two_;
  Search scales_;
};

// --- MXFP8 --------------------------------------------------------------------------------------

std::vector<KitRule> RecognizeMxfp8(const KitOutput& output) {
  const std::array<Aspect, 2> scale_aspects = {{{"scale", kMxScaleRules}, {"zero", kMxZeroRules}}};
  Search scales = TryAll(scale_aspects, [&](const Choice& choice) {
    return std::ranges::count_if(output.units, [&](const KitUnit& unit) {
      return unit.byte !=
             MxByte(unit.amax, static_cast<MxScale>(choice[0]), kMxZeroBytes[choice[1]]);
    });
  });
  const std::array<Aspect, 3> code_aspects = {
      {{"ties", kTieRules}, {"zero_sign", kZeroSignRules}, {"overflow", kOverflowRules}}};
  Search codes = TryAll(code_aspects, [&](const Choice& choice) {
    const ElementRule rule = ElementRuleOf(choice[0], choice[1], choice[2]);
    int64_t num_unexplained = 0;
    for (const KitUnit& unit : output.units) {
      for (size_t i = 0; i < unit.values.size(); ++i) {
        const float quotient = std::ldexp(unit.values[i], 127 - unit.byte);
        num_unexplained += EncodeE4m3(quotient, rule) != unit.codes[i] ? 1 : 0;
      }
    }
    return num_unexplained;
  });
  Append(scales.rules, std::move(codes.rules));
  return std::move(scales.rules);
}

// --- NVFP4 --------------------------------------------------------------------------------------

class Nvfp4Recognizer {
 public:
  explicit Nvfp4Recognizer(const KitOutput& output)
      : output_(output), divides_(output.format != "nvfp4") {}

  std::vector<KitRule> Run() {
    const std::array<Aspect, 3> global_aspects = {{
        {"global", divides_ ? std::span<const RuleText>(kDivisorRules) : kGlobalRules},
        {"zero_set", std::span<const RuleText>(kZeroSetRules).first(divides_ ? 1 : 3)},
        {"sharing", kSharingRules},
    }};
    globals_ = TryAll(global_aspects, [&](const Choice& choice) {
      return std::ranges::count_if(output_.tensors, [&](const KitTensor& tensor) {
        const NvGlobals globals = ComputedGlobals(tensor, choice);
        return !SameFloat(tensor.global, divides_ ? globals.large : globals.small);
      });
    });
    const std::array<Aspect, 3> group_aspects = {{{"group", kGroupRules},
                                                  {"zero_group", kZeroGroupRules},
                                                  {"small_group", kSmallGroupRules}}};
    Search groups =
        TryAll(group_aspects, [&](const Choice& choice) { return CountGroups(choice); });
    const std::array<Aspect, 3> code_aspects = {
        {{"element", kNvElementRules}, {"ties", kTieRules}, {"zero_sign", kZeroSignRules}}};
    Search codes = TryAll(code_aspects, [&](const Choice& choice) { return CountCodes(choice); });
    if (divides_) {
      std::erase_if(globals_.rules, [](const KitRule& rule) { return rule.aspect == "zero_set"; });
    }
    Append(globals_.rules, std::move(groups.rules));
    Append(globals_.rules, std::move(codes.rules));
    return std::move(globals_.rules);
  }

 private:
  NvGlobals ComputedGlobals(const KitTensor& tensor, const Choice& choice) const {
    const NvGlobal global =
        divides_ ? kDivisorGlobals[choice[0]] : static_cast<NvGlobal>(choice[0]);
    return NvGlobalsOf(choice[2] == 0 ? tensor.set_amax : tensor.own_amax, global,
                       static_cast<NvZeroSet>(choice[1]));
  }

  // With the stored one of the two as it is stored.
  NvGlobals GlobalsOf(const KitUnit& unit) const {
    const KitTensor& tensor = output_.tensors[unit.tensor_idx];
    NvGlobals globals = ComputedGlobals(tensor, globals_.choice);
    const bool known = globals_.num_unexplained == 0;
    if (divides_) {
      globals.large = tensor.global;
      globals.small = known ? globals.small : 1.0F / tensor.global;
    } else {
      globals.small = tensor.global;
      globals.large = known ? globals.large : 1.0F / tensor.global;
    }
    return globals;
  }

  int64_t CountGroups(const Choice& choice) const {
    const NvGroupRule rule = {.group = static_cast<NvGroup>(choice[0]),
                              .zero_byte = kZeroGroupBytes[choice[1]],
                              .small = static_cast<NvSmallGroup>(choice[2])};
    return std::ranges::count_if(output_.units, [&](const KitUnit& unit) {
      // Groups of a matrix of zeros follow its global scale, which may be 0.
      return output_.tensors[unit.tensor_idx].set_amax != 0.0F &&
             unit.byte != NvGroupByte(unit.amax, GlobalsOf(unit), rule);
    });
  }

  int64_t CountCodes(const Choice& choice) const {
    const auto element = static_cast<NvElement>(choice[0]);
    const ElementRule rule = ElementRuleOf(choice[1], choice[2]);
    int64_t num_unexplained = 0;
    for (const KitUnit& unit : output_.units) {
      const NvGlobals globals = GlobalsOf(unit);
      const float group_scale = E4m3ToFloat(unit.byte);
      for (size_t i = 0; i < unit.values.size(); ++i) {
        const float quotient = NvQuotient(unit.values[i], group_scale, globals, element);
        num_unexplained += EncodeE2m1(quotient, rule) != unit.codes[i] ? 1 : 0;
      }
    }
    return num_unexplained;
  }

  const KitOutput& output_;
  bool divides_;
  Search globals_;
};

// --- Known quantizers ---------------------------------------------------------------------------

struct AspectRule {
  std::string_view aspect;
  std::string_view rule;
};
// A quantizer by what it does otherwise; in aspects that are not named it does as we do.
struct KnownQuantizer {
  std::string_view format;
  std::string_view name;
  std::array<AspectRule, 6> differs;
};

constexpr std::array kKnownQuantizers = std::to_array<KnownQuantizer>({
    {"fp8",
     "the Triton block kernel of miles, slime, AReaL and verl, with exact divisions",
     {{{"element", "reciprocal"}}}},
    {"fp8", "slime tools/convert_hf_to_fp8.py", {{{"floor", "bf16-1e-12"}}}},
    {"fp8", "miles tools/convert_hf_to_fp8.py", {{{"floor", "none"}}}},
    {"fp8",
     "verl's fallback without Triton",
     {{{"scale", "inverse"}, {"element", "inverse"}, {"floor", "zero-is-one"}}}},
    {"fp8",
     "NeMo RL",
     {{{"scale", "inverse"},
       {"element", "inverse"},
       {"floor", "zero-is-one"},
       {"padding", "last-value"}}}},
    {"fp8",
     "AReaL with BF16 scales, with exact divisions",
     {{{"stored", "bf16-after"}, {"element", "reciprocal"}}}},
    {"fp8-ue8m0", "DeepGEMM per_block_cast_to_fp8", {}},
    {"fp8-channel", "miles and slime tools/convert_hf_to_fp8.py --strategy channel", {}},
    {"fp8-tensor",
     "miles and slime tools/convert_hf_to_fp8.py --strategy tensor",
     {{{"floor", "bf16-1e-12"}, {"element", "bf16"}, {"sharing", "own"}}}},
    {"fp8-tensor",
     "SGLang input_to_float8",
     {{{"scale", "inverse"}, {"element", "inverse"}, {"sharing", "own"}}}},
    {"fp8-tensor", "ModelOpt", {{{"floor", "none"}, {"element", "bf16"}, {"overflow", "nan"}}}},
    {"mxfp8", "TransformerEngine, miles and FlashInfer", {}},
    {"mxfp8", "OCP MX v1.0 and torchao FLOOR", {{{"scale", "floor"}}}},
    {"mxfp8", "compressed-tensors", {{{"scale", "even"}}}},
    {"mxfp8", "torchao CEIL", {{{"scale", "ceil"}}}},
    {"mxfp8", "NeMo RL", {{{"zero", "01"}}}},
    {"nvfp4", "TransformerEngine and miles", {}},
    {"nvfp4",
     "ModelOpt",
     {{{"global", "divide"},
       {"zero_set", "zero"},
       {"group", "six-d"},
       {"zero_group", "38"},
       {"element", "divide"},
       {"zero_sign", "exact-dropped"}}}},
    {"nvfp4",
     "torchao nvfp4_quantize",
     {{{"global", "divide"},
       {"zero_set", "zero"},
       {"group", "sixth-over-d"},
       {"zero_group", "08"},
       {"small_group", "clamped-08"},
       {"element", "two-reciprocals"}}}},
    {"nvfp4", "SGLang nvfp4_online", {{{"global", "double-reciprocal"}}}},
    {"nvfp4-compressed-tensors",
     "compressed-tensors",
     {{{"global", "bf16"}, {"group", "bf16-sixth"}, {"zero_group", "20"}, {"element", "divisor"}}}},
});

// Whether `rule` of the output can be that of `quantizer`.
bool Explains(const KnownQuantizer& quantizer, const KitRule& rule) {
  const auto named = std::ranges::find(quantizer.differs, rule.aspect, &AspectRule::aspect);
  if (!rule.exact) {
    return false;
  }
  if (named == quantizer.differs.end()) {
    return rule.ours;
  }
  return rule.rule == named->rule || std::ranges::find(rule.also, named->rule) != rule.also.end();
}

}  // namespace

std::vector<KitRule> RecognizeRules(const KitOutput& output) {
  if (output.format == "mxfp8") {
    return RecognizeMxfp8(output);
  }
  if (output.format.starts_with("nvfp4")) {
    return Nvfp4Recognizer(output).Run();
  }
  return Fp8Recognizer(output).Run();
}

std::vector<std::string> QuantizersWithRules(std::string_view format,
                                             const std::vector<KitRule>& rules) {
  std::vector<std::string> names;
  for (const KnownQuantizer& quantizer : kKnownQuantizers) {
    if (quantizer.format == format && std::ranges::all_of(rules, [&](const KitRule& rule) {
          return Explains(quantizer, rule);
        })) {
      names.emplace_back(quantizer.name);
    }
  }
  return names;
}

}  // namespace octavo
