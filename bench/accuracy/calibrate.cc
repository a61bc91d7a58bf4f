// calibrate MODEL TEXT...: what a calibration of static input scales needs to know. Serves MODEL,
// runs each text through its layers in BF16, and prints for every weight that was multiplied the
// largest magnitude of its input, a JSON object a line: {"module": "model.layers.0.mlp.up_proj",
// "amax": 3.5}. Experts of a layer share theirs.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/bf16.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/sync/serving.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

[[noreturn]] void Fail(std::string_view message) {
  fmt::print(stderr, "calibrate: {}\n", message);
  std::exit(1);
}

void Must(const Status& status) {
  if (!status.ok()) {
    Fail(status.message());
  }
}

float AmaxOf(const Activations& x) {
  float amax = 0.0F;
  for (int64_t t = 0; t < x.rows; ++t) {
    const auto* row = reinterpret_cast<const uint16_t*>(x.data) + t * x.stride;
    for (int64_t i = 0; i < x.cols; ++i) {
      amax = std::max(amax, std::fabs(Bf16ToFloat(row[i])));
    }
  }
  return amax;
}

// Another backend, whose linear layers are watched. An op that is left to a linear layer runs
// first.
class WatchingBackend final : public Backend {
 public:
  explicit WatchingBackend(Backend* inner) : inner_(*inner) {}

  const std::map<const PackedMatrix*, float>& amax() const { return amax_; }

  std::string_view name() const override { return inner_.name(); }
  std::string_view recipe() const override { return inner_.recipe(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  ThreadPool& pool() override { return inner_.pool(); }
  Status Reserve(const Limits& limits) override { return inner_.Reserve(limits); }
  Status Pack(const CanonicalMatrix& canonical, PackedMatrix* packed) const override {
    return inner_.Pack(canonical, packed);
  }
  Status UnpackCodes(const PackedMatrix& packed, int64_t first_row, int64_t num_rows,
                     std::span<std::byte> codes) const override {
    return inner_.UnpackCodes(packed, first_row, num_rows, codes);
  }
  Status UnpackScales(const PackedMatrix& packed, std::span<std::byte> scales) const override {
    return inner_.UnpackScales(packed, scales);
  }
  int64_t KvPageBytes(const KvShape& shape) const override { return inner_.KvPageBytes(shape); }

  Status Linear(const LinearArgs& args) override {
    LinearArgs plain = args;
    if (plain.norm.has_value()) {
      RETURN_IF_ERROR(inner_.RmsNorm(*plain.norm));
      plain.norm.reset();
    }
    RETURN_IF_ERROR(RunActivation(&plain));
    const float amax = AmaxOf(args.x);
    for (const LinearPart& part : args.parts) {
      Note(part.weight, amax);
    }
    return inner_.Linear(plain);
  }
  Status GroupedLinear(const GroupedLinearArgs& args) override {
    GroupedLinearArgs plain = args;
    RETURN_IF_ERROR(RunActivation(&plain));
    const float amax = AmaxOf(args.x);
    for (const GroupedPart& part : args.parts) {
      for (const PackedMatrix* weight : part.weights) {
        Note(weight, amax);
      }
    }
    return inner_.GroupedLinear(plain);
  }

  Status Embed(const EmbedArgs& args) override { return inner_.Embed(args); }
  Status RmsNorm(const RmsNormArgs& args) override { return inner_.RmsNorm(args); }
  Status Add(const AddArgs& args) override { return inner_.Add(args); }
  Status Rope(const RopeArgs& args) override { return inner_.Rope(args); }
  Status SiluMul(const SiluMulArgs& args) override { return inner_.SiluMul(args); }
  Status GatherRows(const GatherRowsArgs& args) override { return inner_.GatherRows(args); }
  Status Copy(const CopyArgs& args) override { return inner_.Copy(args); }
  Status Route(const RouteArgs& args) override { return inner_.Route(args); }
  Status SortByExpert(const SortByExpertArgs& args) override { return inner_.SortByExpert(args); }
  Status Combine(const CombineArgs& args) override { return inner_.Combine(args); }
  Status KvStore(const KvStoreArgs& args) override { return inner_.KvStore(args); }
  Status Attention(const AttentionArgs& args) override { return inner_.Attention(args); }
  Status SoftmaxStats(const SoftmaxStatsArgs& args) override { return inner_.SoftmaxStats(args); }

 private:
  // Runs what is left to the layer, and takes it out of `args`.
  template <typename Args>
  Status RunActivation(Args* args) {
    if (args->silu_mul.has_value()) {
      RETURN_IF_ERROR(inner_.SiluMul(*args->silu_mul));
      args->silu_mul.reset();
    }
    return OkStatus();
  }
  void Note(const PackedMatrix* weight, float amax) {
    float& largest = amax_[weight];
    largest = std::max(largest, amax);
  }

  Backend& inner_;
  std::map<const PackedMatrix*, float> amax_;
};

// One prompt through all layers, in pages of its own.
Status RunText(Model& model, Backend& backend, const ModelWeights& weights,
               const std::vector<int32_t>& token_ids) {
  const auto num_tokens = static_cast<int64_t>(token_ids.size());
  const int64_t num_pages = (num_tokens + kPageTokens - 1) / kPageTokens;
  const KvShape shape = KvShapeOf(model.spec());
  const int64_t page_bytes = backend.KvPageBytes(shape);
  ASSIGN_OR_RETURN(Buffer pages,
                   Buffer::AllocateHost(model.spec().num_layers * num_pages * page_bytes));
  std::memset(pages.data(), 0, static_cast<size_t>(pages.num_bytes()));
  std::vector<KvLayer> kv;
  kv.reserve(static_cast<size_t>(model.spec().num_layers));
  for (int64_t layer = 0; layer < model.spec().num_layers; ++layer) {
    kv.push_back({pages.data() + layer * num_pages * page_bytes, page_bytes, num_pages, shape});
  }
  std::vector<int32_t> page_ids(static_cast<size_t>(num_pages));
  std::vector<int32_t> positions(token_ids.size());
  std::iota(page_ids.begin(), page_ids.end(), 0);
  std::iota(positions.begin(), positions.end(), 0);
  const Segment segment = {.num_rows = num_tokens, .page_table = page_ids};
  return model.Forward({.token_ids = token_ids, .positions = positions, .segments = {&segment, 1}},
                       weights, kv);
}

Status Calibrate(const ModelSpec& spec, const std::vector<std::vector<int32_t>>& prompts,
                 const ModelWeights& weights, Backend* inner) {
  int64_t longest = 0;
  for (const std::vector<int32_t>& prompt : prompts) {
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
  }
  WatchingBackend backend(inner);
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                   MakeModel(spec, &backend,
                             {.max_tokens = longest, .max_logit_rows = 1, .max_context = longest}));
  for (const std::vector<int32_t>& prompt : prompts) {
    RETURN_IF_ERROR(RunText(*model, backend, weights, prompt));
  }
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const auto found = backend.amax().find(&weights.matrices[i]);
    if (found != backend.amax().end()) {
      fmt::print("{{\"module\": \"{}\", \"amax\": {}}}\n", ModuleOfWeight(spec.weights[i].name),
                 found->second);
    }
  }
  return OkStatus();
}

int Main(std::span<char*> args) {
  if (args.size() < 3) {
    Fail("expected MODEL TEXT...");
  }
  ServingOptions options;
  options.model_dir = args[1];
  options.engine.context_length = 4096;
  options.engine.max_total_tokens = 4096;
  const Result<std::unique_ptr<Serving>> serving = StartServing(options);
  Must(serving.error());
  const Result<Tokenizer> tokenizer = Tokenizer::LoadFolder(args[1]);
  Must(tokenizer.error());
  std::vector<std::vector<int32_t>> prompts;
  prompts.reserve(args.size());
  for (const char* text : args.subspan(2)) {
    prompts.push_back(tokenizer->Encode(text));
  }
  std::promise<Status> finished;
  (*serving)->engine->RunBetweenSteps([&](const ModelWeights& weights, Backend& backend) {
    finished.set_value(Calibrate((*serving)->spec, prompts, weights, &backend));
  });
  Must(finished.get_future().get());
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main({argv, static_cast<size_t>(argc)}); }
