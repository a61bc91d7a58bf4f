// Method: updates through the C ABI against a scripted server, and what quantizing in the trainer
// sends, counted and compared by name.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/capi/encoder.h"
#include "octavo/capi/source_for_test.h"
#include "octavo/client/scripted_server.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/octavo.h"
#include "octavo/policy/manifest.h"
#include "octavo/policy/precision_table.h"

namespace octavo::capi {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using ClientPtr = std::unique_ptr<octavo_client, void (*)(octavo_client*)>;
using UpdatePtr = std::unique_ptr<octavo_update, void (*)(octavo_update*)>;

// --- Quantizing in the trainer -------------------------------------------------------------------

Manifest NvfpManifest() {
  const ModelSpec spec = TestSpec();
  return MakeManifest(
      spec,
      CompilePolicy(spec, {.format = WeightFormat::kNvfp4, .scope = QuantizeScope::kMlp}).value(),
      {});
}

TEST(Encoder, GivesASetOneScaleWhenItsLastMemberIsThere) {
  const Manifest manifest = NvfpManifest();
  Encoder encoder(&manifest, nullptr);
  std::vector<std::string> names;
  std::vector<float> scales;
  const auto emit = [&](std::string_view name, const ConstTensorView& tensor) {
    names.emplace_back(name);
    if (name.ends_with("_scale_2")) {
      float scale = 0.0F;
      std::memcpy(&scale, tensor.data, sizeof(scale));
      scales.push_back(scale);
    }
    return OkStatus();
  };
  const std::string mlp = "model.layers.0.mlp.";
  const Source gate({260, 160}, 1);
  const Source up({260, 160}, 2);
  const Source narrow({260, 144}, 3);
  ASSERT_TRUE(encoder.Put(mlp + "gate_proj.weight", gate.view(), emit).ok());
  EXPECT_THAT(names, ElementsAre());
  EXPECT_THAT(encoder.Finish().message(), HasSubstr(mlp + "up_proj.weight, which is missing"));
  ASSERT_TRUE(encoder.Put(mlp + "up_proj.weight", up.view(), emit).ok());
  EXPECT_TRUE(encoder.Finish().ok());
  // Not the input scales: those are the engine's.
  EXPECT_THAT(names, ElementsAre(mlp + "gate_proj.weight", mlp + "gate_proj.weight_scale",
                                 mlp + "gate_proj.weight_scale_2", mlp + "up_proj.weight",
                                 mlp + "up_proj.weight_scale", mlp + "up_proj.weight_scale_2"));
  ASSERT_EQ(scales.size(), 2U);
  EXPECT_EQ(scales[0], scales[1]);
  names.clear();
  // Kept weights, parts and unknown names go out as they are; a wrong shape does not.
  const Source norm({160});
  ASSERT_TRUE(encoder.Put("model.norm.weight", norm.view(), emit).ok());
  ASSERT_TRUE(encoder.Put("vision.weight", norm.view(), emit).ok());
  EXPECT_THAT(names, ElementsAre("model.norm.weight", "vision.weight"));
  EXPECT_EQ(encoder.Put(mlp + "up_proj.weight", narrow.view(), emit).code(),
            StatusCode::kInvalidArgument);
}

// --- Updates -----------------------------------------------------------------------------------

// Answers every call of a transaction well, but `failing` with 400.
std::string Answer(const ScriptedRequest& request, std::string_view failing) {
  const std::string_view line = request.line;
  if (!failing.empty() && line.find(failing) != std::string_view::npos) {
    return RawReply(400, R"({"success":false,"message":"refused on purpose"})");
  }
  if (line.ends_with("/begin")) {
    return RawReply(200, R"({"update_id":"u1"})");
  }
  if (line.ends_with("/v1/loads")) {
    return RawReply(200, R"({"loads":[{"num_running_reqs":4,"num_waiting_reqs":1}]})");
  }
  if (line.ends_with("/digest")) {
    return RawReply(200, R"({"digest":"d1","tensors":{"a.x":"1","a.y":"2","b.x":"3"}})");
  }
  if (line.ends_with("/manifest")) {
    return RawReply(200, ManifestToJson(NvfpManifest()));
  }
  return RawReply(200, R"({"version":"7","recipe":"r","emulated":false})");
}

// The calls of the transaction itself, without their query.
std::vector<std::string> Steps(const ScriptedServer& server) {
  constexpr std::string_view kStart = "POST /octavo/v1/update/";
  std::vector<std::string> steps;
  for (const ScriptedRequest& request : server.requests()) {
    if (request.line.starts_with(kStart)) {
      steps.push_back(request.line.substr(kStart.size(), request.line.find('?') - kStart.size()));
    }
  }
  return steps;
}

// The first request of a call. Fails when there is none.
ScriptedRequest RequestOf(const ScriptedServer& server, std::string_view call) {
  for (const ScriptedRequest& request : server.requests()) {
    if (request.line.find(call) != std::string::npos) {
      return request;
    }
  }
  ADD_FAILURE() << "no " << call;
  return {};
}

ClientPtr ClientOf(const ScriptedServer& server) {
  const std::string url = server.url();
  const char* const urls[] = {url.c_str()};
  octavo_client_options options = {};
  options.struct_size = sizeof(options);
  options.urls = urls;
  options.num_urls = 1;
  options.api_key = "secret";
  octavo_client* client = nullptr;
  octavo_error error = {};
  EXPECT_EQ(octavo_client_create(&options, &client, &error), OCTAVO_OK) << error.message;
  return {client, octavo_client_free};
}

octavo_update_options SmallBuckets() {
  octavo_update_options options = {};
  options.struct_size = sizeof(options);
  options.bucket_bytes = 12;
  options.weight_version = "7";
  return options;
}

UpdatePtr BeginOk(octavo_client* client, const octavo_update_options& options) {
  octavo_update* update = nullptr;
  octavo_error error = {};
  EXPECT_EQ(octavo_update_begin(client, &options, &update, &error), OCTAVO_OK) << error.message;
  return {update, octavo_update_free};
}

TEST(CapiUpdate, SendsFullBucketsAndCommits) {
  ScriptedServer server([](const ScriptedRequest& request) { return Answer(request, ""); });
  const ClientPtr client = ClientOf(server);
  const UpdatePtr update = BeginOk(client.get(), SmallBuckets());
  for (const char* name : {"a", "b", "c"}) {
    const Source source({3});
    const octavo_tensor tensor = source.tensor();
    ASSERT_EQ(octavo_update_put(update.get(), name, &tensor, nullptr), OCTAVO_OK);
  }
  octavo_buf report = {};
  octavo_error error = {};
  ASSERT_EQ(octavo_update_commit(update.get(), &report, &error), OCTAVO_OK) << error.message;
  EXPECT_THAT(report.data, HasSubstr(R"("digest":"d1")"));
  EXPECT_THAT(report.data, HasSubstr(R"("bytes":18)"));
  octavo_buf_free(&report);
  EXPECT_THAT(Steps(server), ElementsAre("begin", "put", "put", "seal", "commit"));
  EXPECT_EQ(RequestOf(server, "/begin").authorization, "Bearer secret");
  // It is over: nothing more is sent, and nothing is aborted.
  EXPECT_EQ(octavo_update_commit(update.get(), nullptr, &error), OCTAVO_INVALID_ARGUMENT);
  octavo_update_abort(update.get());
  EXPECT_EQ(Steps(server).size(), 5U);
}

TEST(CapiUpdate, IsAbortedWhenItIsFreedAndAfterAFailedSeal) {
  {
    ScriptedServer server([](const ScriptedRequest& request) { return Answer(request, ""); });
    const ClientPtr client = ClientOf(server);
    BeginOk(client.get(), SmallBuckets()).reset();
    EXPECT_THAT(Steps(server), ElementsAre("begin", "abort"));
  }
  ScriptedServer server([](const ScriptedRequest& request) { return Answer(request, "/seal"); });
  const ClientPtr client = ClientOf(server);
  const UpdatePtr update = BeginOk(client.get(), SmallBuckets());
  octavo_error error = {};
  EXPECT_EQ(octavo_update_commit(update.get(), nullptr, &error), OCTAVO_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("refused on purpose"));
  EXPECT_THAT(Steps(server), ElementsAre("begin", "seal", "abort"));
}

TEST(CapiUpdate, ARefusedBucketNamesItsTensorsAndEndsTheUpdate) {
  ScriptedServer server([](const ScriptedRequest& request) { return Answer(request, "/put"); });
  const ClientPtr client = ClientOf(server);
  const UpdatePtr update = BeginOk(client.get(), SmallBuckets());
  const Source source({3});
  const octavo_tensor tensor = source.tensor();
  octavo_error error = {};
  EXPECT_EQ(octavo_update_put(update.get(), "a", &tensor, nullptr), OCTAVO_OK);
  EXPECT_EQ(octavo_update_put(update.get(), "b", &tensor, nullptr), OCTAVO_OK);
  EXPECT_EQ(octavo_update_put(update.get(), "c", &tensor, &error), OCTAVO_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("a .. b (2 tensors)"));
  EXPECT_EQ(octavo_update_put(update.get(), "d", &tensor, &error), OCTAVO_INVALID_ARGUMENT);
  EXPECT_EQ(octavo_update_seal(update.get(), &error), OCTAVO_INVALID_ARGUMENT);
}

TEST(CapiUpdate, QuantizesByTheManifestWhenAsked) {
  ScriptedServer server([](const ScriptedRequest& request) { return Answer(request, ""); });
  const ClientPtr client = ClientOf(server);
  octavo_update_options options = SmallBuckets();
  options.quantize_in = OCTAVO_QUANTIZE_IN_TRAINER;
  options.bucket_bytes = 0;
  const UpdatePtr update = BeginOk(client.get(), options);
  for (const char* name : {"gate_proj", "up_proj"}) {
    const Source source({260, 160});
    const octavo_tensor tensor = source.tensor();
    const std::string full = std::string("model.layers.0.mlp.") + name + ".weight";
    ASSERT_EQ(octavo_update_put(update.get(), full.c_str(), &tensor, nullptr), OCTAVO_OK);
  }
  ASSERT_EQ(octavo_update_seal(update.get(), nullptr), OCTAVO_OK);
  ASSERT_THAT(Steps(server), ElementsAre("begin", "put", "seal"));
  EXPECT_THAT(RequestOf(server, "/put").body,
              HasSubstr("model.layers.0.mlp.up_proj.weight_scale_2"));
}

TEST(CapiClient, ReadsManifestAndChecksums) {
  ScriptedServer server([](const ScriptedRequest& request) { return Answer(request, ""); });
  const ClientPtr client = ClientOf(server);
  octavo_policy* policy = nullptr;
  ASSERT_EQ(octavo_client_manifest(client.get(), &policy, nullptr), OCTAVO_OK);
  octavo_weight weight = {};
  ASSERT_EQ(octavo_policy_find(policy, "model.layers.1.mlp.up_proj.weight", &weight, nullptr),
            OCTAVO_OK);
  EXPECT_EQ(weight.format, OCTAVO_FORMAT_NVFP4);
  EXPECT_GE(weight.group, 0);
  octavo_policy_free(policy);
  octavo_buf text = {};
  ASSERT_EQ(octavo_client_checksum(client.get(), "a*", &text, nullptr), OCTAVO_OK);
  EXPECT_STREQ(text.data, R"({"digest":"d1","tensors":{"a.x":"1","a.y":"2"}})");
  octavo_buf_free(&text);
  ASSERT_EQ(octavo_client_checksum(client.get(), "*.x", &text, nullptr), OCTAVO_OK);
  EXPECT_STREQ(text.data, R"({"digest":"d1","tensors":{"a.x":"1","b.x":"3"}})");
  octavo_buf_free(&text);
}

TEST(CapiClient, NamesWhatIsWrong) {
  octavo_client_options options = {};
  options.struct_size = sizeof(options);
  octavo_client* client = nullptr;
  octavo_error error = {};
  EXPECT_EQ(octavo_client_create(&options, &client, &error), OCTAVO_INVALID_ARGUMENT);
  const char* const urls[] = {"ftp://nowhere"};
  options.urls = urls;
  options.num_urls = 1;
  EXPECT_EQ(octavo_client_create(&options, &client, &error), OCTAVO_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("ftp://nowhere"));
  const char* const nobody[] = {"http://127.0.0.1:1"};
  options.urls = nobody;
  ASSERT_EQ(octavo_client_create(&options, &client, &error), OCTAVO_OK) << error.message;
  octavo_policy* policy = nullptr;
  EXPECT_EQ(octavo_client_manifest(client, &policy, &error), OCTAVO_UNAVAILABLE);
  octavo_update* update = nullptr;
  const octavo_update_options small = SmallBuckets();
  EXPECT_EQ(octavo_update_begin(client, &small, &update, &error), OCTAVO_UNAVAILABLE);
  octavo_client_free(client);
}

}  // namespace
}  // namespace octavo::capi
