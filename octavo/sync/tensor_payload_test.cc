// Method: pickles that PyTorch made, under tests/data/sync, and small edits of them. They were made
// by hand, with torch 2.15 and Python 3.11, of a = torch.arange(6.).reshape(2, 3):
//
//   named_by_value.pkl   pickle.dumps(named, 2), of a list with a.to(bfloat16), a.t(),
//                        Parameter(a[1]), a.to(float8_e4m3fn) and zeros(0)
//   bucket_by_value.pkl  pickle.dumps of SGLang's bucket form of: one uint8 7 (so that what follows
//                        stands at odd offsets), a.to(bfloat16), [[0.5]], and the scalar 3.
//   named_shared.pkl     ForkingPickler, sharing strategy file_system: a.to(bfloat16) in a
//                        LocalSerializedTensor, and a.t()
//   bucket_shared.pkl    the same of the bucket
//   named_fd.pkl         the same of one tensor with the strategy file_descriptor
//
// Shared memory is made by the test, under the names of the pickles but with digits of this
// process.

#include "octavo/sync/tensor_payload.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/file.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;

constexpr TensorPayloadForm kNamed = TensorPayloadForm::kNamedTensors;
constexpr TensorPayloadForm kBucket = TensorPayloadForm::kFlattenedBucket;

// Process 7284 wrote the pickles.
constexpr std::string_view kWriter = "/torch_7284_";

std::string OwnPrefix() { return fmt::format("/torch_{:04}_", getpid() % 10000); }

std::string ReadData(const std::string& name) {
  const auto text = ReadTextFile("tests/data/sync/" + name);
  EXPECT_TRUE(text.has_value()) << text.error().message();
  return *text;
}

// All occurrences; `to` is as long as `from`.
std::string Replaced(std::string text, std::string_view from, std::string_view to) {
  EXPECT_EQ(from.size(), to.size());
  EXPECT_NE(text.find(from), std::string::npos) << from;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + 1)) {
    text.replace(at, from.size(), to);
  }
  return text;
}

std::string Message(const std::string& pickle, TensorPayloadForm form) {
  const auto payload = TensorPayload::Read(pickle, form);
  return payload.has_value() ? "none" : payload.error().message();
}

template <typename T>
std::vector<T> Values(const ConstTensorView& view) {
  std::vector<T> values(static_cast<size_t>(view.NumBytes()) / sizeof(T));
  std::memcpy(values.data(), view.data, values.size() * sizeof(T));
  return values;
}

// BF16 of 0 to 5.
const std::vector<uint16_t> kBf16 = {0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0};

// What torch shares: a count of holds, and the storage behind 64 bytes.
class SharedStorage {
 public:
  SharedStorage(std::string_view rest, int32_t holds, std::string_view bytes)
      : name_(OwnPrefix() + std::string(rest)) {
    shm_unlink(name_.c_str());
    const int fd = shm_open(name_.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
    std::string content(64, '\0');
    std::memcpy(content.data(), &holds, sizeof(holds));
    content += bytes;
    EXPECT_EQ(write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
    close(fd);
  }
  ~SharedStorage() { shm_unlink(name_.c_str()); }
  SharedStorage(const SharedStorage&) = delete;
  SharedStorage& operator=(const SharedStorage&) = delete;

  bool Exists() const { return Holds() >= 0; }
  // -1: it is gone.
  int32_t Holds() const {
    const int fd = shm_open(name_.c_str(), O_RDONLY, 0);
    if (fd < 0) {
      return -1;
    }
    int32_t holds = 0;
    EXPECT_EQ(read(fd, &holds, sizeof(holds)), static_cast<ssize_t>(sizeof(holds)));
    close(fd);
    return holds;
  }

 private:
  std::string name_;
};

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

const std::vector<float> kFloats = {0, 1, 2, 3, 4, 5};

TEST(TensorPayload, ReadsNamedTensorsByValue) {
  const auto payload = TensorPayload::Read(ReadData("named_by_value.pkl"), kNamed);
  ASSERT_TRUE(payload.has_value()) << payload.error().message();
  const std::vector<NamedTensor>& tensors = payload->tensors();
  ASSERT_EQ(tensors.size(), 5U);
  EXPECT_EQ(tensors[0].name, "a.weight");
  EXPECT_EQ(tensors[0].view.dtype, DType::kBf16);
  EXPECT_EQ(tensors[0].view.shape, (Shape{2, 3}));
  EXPECT_EQ(Values<uint16_t>(tensors[0].view), kBf16);
  // Transposed: strides (1, 3) of the storage 0 to 5.
  EXPECT_EQ(tensors[1].view.shape, (Shape{3, 2}));
  EXPECT_THAT(Values<float>(tensors[1].view), ElementsAre(0, 3, 1, 4, 2, 5));
  // A parameter, three elements into the same storage.
  EXPECT_THAT(Values<float>(tensors[2].view), ElementsAre(3, 4, 5));
  // E4M3 of 0 to 5: 1 is 0.0111.000.
  EXPECT_EQ(tensors[3].view.dtype, DType::kF8E4m3);
  EXPECT_THAT(Values<uint8_t>(tensors[3].view), ElementsAre(0, 0x38, 0x40, 0x44, 0x48, 0x4A));
  EXPECT_EQ(tensors[4].view.shape, Shape{0});
}

void ExpectBucket(const Result<TensorPayload>& payload) {
  ASSERT_TRUE(payload.has_value()) << payload.error().message();
  const std::vector<NamedTensor>& tensors = payload->tensors();
  ASSERT_EQ(tensors.size(), 4U);
  EXPECT_THAT(Values<uint8_t>(tensors[0].view), ElementsAre(7));
  EXPECT_EQ(tensors[1].name, "a.weight");
  EXPECT_EQ(tensors[1].view.dtype, DType::kBf16);
  EXPECT_EQ(Values<uint16_t>(tensors[1].view), kBf16);
  EXPECT_EQ(tensors[2].name, "a.weight_scale_inv");
  EXPECT_EQ(tensors[2].view.shape, (Shape{1, 1}));
  EXPECT_THAT(Values<float>(tensors[2].view), ElementsAre(0.5F));
  EXPECT_EQ(tensors[3].view.shape, Shape{});
  EXPECT_THAT(Values<float>(tensors[3].view), ElementsAre(3.0F));
}

TEST(TensorPayload, ReadsABucketByValue) {
  ExpectBucket(TensorPayload::Read(ReadData("bucket_by_value.pkl"), kBucket));
}

TEST(TensorPayload, ReadsABucketOfSharedMemoryAndGivesItsHoldBack) {
  const std::string flat = "\x07" + BytesOf(kBf16) + BytesOf(std::vector<float>{0.5F, 3.0F});
  const SharedStorage storage("4142160243_2", 2, flat);  // The sender's hold and ours.
  {
    const auto payload =
        TensorPayload::Read(Replaced(ReadData("bucket_shared.pkl"), kWriter, OwnPrefix()), kBucket);
    ExpectBucket(payload);
    EXPECT_EQ(storage.Holds(), 2);
  }
  EXPECT_EQ(storage.Holds(), 1);
}

// The sender has let go of the second tensor: ours is the last hold.
TEST(TensorPayload, ReadsSerializedTensorsAndRemovesWhatNobodyElseHolds) {
  const SharedStorage first("1943645431_0", 2, BytesOf(kBf16));
  const SharedStorage second("3217557459_1", 1, BytesOf(kFloats));
  {
    const auto payload =
        TensorPayload::Read(Replaced(ReadData("named_shared.pkl"), kWriter, OwnPrefix()), kNamed);
    ASSERT_TRUE(payload.has_value()) << payload.error().message();
    ASSERT_EQ(payload->tensors().size(), 2U);
    EXPECT_EQ(Values<uint16_t>(payload->tensors()[0].view), kBf16);
    EXPECT_THAT(Values<float>(payload->tensors()[1].view), ElementsAre(0, 3, 1, 4, 2, 5));
  }
  EXPECT_EQ(first.Holds(), 1);
  EXPECT_FALSE(second.Exists());
}

// The first tensor was opened before the second failed; its hold is given back all the same.
TEST(TensorPayload, SharedMemoryThatIsMissingShortOrUnheldIsRefusedByName) {
  const std::string pickle = Replaced(ReadData("named_shared.pkl"), kWriter, OwnPrefix());
  const SharedStorage first("1943645431_0", 4, BytesOf(kBf16));
  EXPECT_THAT(Message(pickle, kNamed),
              HasSubstr("b.weight: shared memory " + OwnPrefix() + "3217557459_1: could not open"));
  {
    const SharedStorage second("3217557459_1", 1, "short");
    EXPECT_THAT(Message(pickle, kNamed), HasSubstr("expected 24 bytes behind a header of 64"));
    EXPECT_EQ(second.Holds(), 1);
  }
  const SharedStorage second("3217557459_1", 0, BytesOf(kFloats));
  EXPECT_THAT(Message(pickle, kNamed), HasSubstr("nobody holds it"));
  EXPECT_EQ(second.Holds(), 0);
  EXPECT_EQ(first.Holds(), 1);  // Three pickles were read.
}

TEST(TensorPayload, OnlyMemoryThatTorchNamedIsOpened) {
  const std::string pickle = ReadData("bucket_shared.pkl");
  EXPECT_THAT(Message(Replaced(pickle, "/torch_7284_", "/other_7284_"), kBucket),
              HasSubstr("flattened_tensor: shared memory: expected a name that PyTorch gives"));
  EXPECT_THAT(Message(Replaced(pickle, "/torch_7284_", "/torch_/etc/"), kBucket),
              HasSubstr("expected a name that PyTorch gives"));
}

TEST(TensorPayload, FileDescriptorsAndCudaAreRefusedByName) {
  EXPECT_THAT(Message(ReadData("named_fd.pkl"), kNamed),
              HasSubstr("torch.multiprocessing.reductions.rebuild_storage_fd: a file descriptor"));
  for (const char* global : {"ctorch.multiprocessing.reductions\nrebuild_cuda_tensor\n",
                             "csglang.srt.utils.patch_torch\n_rebuild_cuda_tensor_modified\n"}) {
    EXPECT_THAT(Message("\x80\x02"s + global + ".", kNamed),
                HasSubstr("CUDA tensors need a build with CUDA"));
  }
}

TEST(TensorPayload, AnyOtherGlobalIsRefusedByName) {
  const std::string pickle = ReadData("named_by_value.pkl");
  EXPECT_THAT(Message(Replaced(pickle, "_rebuild_tensor_v2", "_rebuild_tensor_v9"), kNamed),
              HasSubstr("global torch._utils._rebuild_tensor_v9 is not one"));
  EXPECT_THAT(Message("\x80\x02"
                      "cos\nsystem\nX\x02\x00\x00\x00ls\x85R."s,
                      kNamed),
              HasSubstr("pickle: byte 2: global os.system is not one"));
  // Inside a stored tensor only classes of storages are allowed.
  EXPECT_THAT(Message(Replaced(pickle, "BFloat16Storage", "_load_from_byte"), kNamed),
              HasSubstr("torch._load_from_byte is not a class of storages"));
}

TEST(TensorPayload, AStorageThatIsNotWhatItSaysIsRefused) {
  const std::string pickle = ReadData("bucket_by_value.pkl");
  // The count of elements, 21 (K 0x15), in the description; then in front of the bytes.
  EXPECT_THAT(Message(Replaced(pickle, "K\x15Nt", "K\x14Nt"), kBucket),
              HasSubstr("expected 20 elements of U8, got 21 announced"));
  EXPECT_THAT(Message(Replaced(pickle, "\x8a\nl\xfc", "\x8a\nm\xfc"), kBucket),
              HasSubstr("expected torch.save's format 1001"));
  EXPECT_THAT(Message(Replaced(pickle, "little_endian", "little_endiaN"), kBucket), "none");
}

TEST(TensorPayload, IndicesOfABucketMustFit) {
  const std::string pickle = ReadData("bucket_by_value.pkl");
  // start_idx, end_idx and numel of the last tensor: 17, 21, 4. The memo lies between.
  const std::string last = pickle.substr(pickle.rfind("f.weight"));
  const size_t at = pickle.size() - last.size();
  const auto edited = [&](const std::string& from, const std::string& to) {
    const size_t place = pickle.find(from, at);
    EXPECT_NE(place, std::string::npos);
    std::string text = pickle;
    text.replace(place, from.size(), to);
    return text;
  };
  EXPECT_THAT(Message(edited("K\x15", "K\x16"), kBucket),
              HasSubstr("metadata 3: f.weight: expected start_idx and end_idx in a "
                        "flattened_tensor of 21, got 17 and 22"));
  EXPECT_THAT(Message(edited("K\x11", "K\x10"), kBucket),
              HasSubstr("f.weight: F32 [] is not what lies in its 5 bytes"));
  EXPECT_THAT(Message(edited("K\x04", "K\x01"), kBucket),
              HasSubstr("f.weight: numel: expected 4, got 1"));
}

TEST(TensorPayload, AnotherFormIsRefused) {
  EXPECT_THAT(Message(ReadData("bucket_by_value.pkl"), kNamed),
              HasSubstr("needs load_format \"flattened_bucket\""));
  EXPECT_THAT(Message(ReadData("named_by_value.pkl"), kBucket),
              HasSubstr("expected a dict of flattened_tensor and metadata, got a list"));
  EXPECT_THAT(Message("\x80\x02]K\x01"s + "a.", kNamed), HasSubstr("item 0: expected a (name"));
  EXPECT_THAT(Message("\x80\x02]X\x01\x00\x00\x00"s + "aK\x01\x86" + "a.", kNamed),
              HasSubstr("a: expected a tensor, got a int"));
  EXPECT_THAT(Message("\x80\x02]K\x01K\x01\x86"s + "a.", kNamed),
              HasSubstr("name: expected a str"));
  EXPECT_THAT(Message("\x80\x02]..", kNamed), HasSubstr("1 bytes behind its STOP"));
}

// No tensor, no metadata: a rank whose bucket is empty sends that.
TEST(TensorPayload, ListsAndBucketsMayBeEmpty) {
  EXPECT_THAT(Message("\x80\x02].", kNamed), "none");
  const std::string empty =
      "\x80\x02}(X\x10\x00\x00\x00"s + "flattened_tensor" +
      "ctorch._utils\n_rebuild_tensor_v3\n(ctorch.multiprocessing.reductions\n"
      "rebuild_storage_empty\nctorch.storage\nUntypedStorage\n\x85R" +
      "K\x00K\x00\x85K\x01\x85\x89}ctorch\nuint8\ntRX\x08\x00\x00\x00"s + "metadata]u.";
  EXPECT_THAT(Message(empty, kBucket), "none");
}

// A tensor that would be larger than its storage, or leave it.
TEST(TensorPayload, ATensorMustLieInItsStorage) {
  // rebuild_tensor(class, storage of nothing, (offset, size, stride, requires_grad))
  const auto pickle = [](const std::string& layout) {
    return "\x80\x02]X\x01\x00\x00\x00"s + "a" +
           "ctorch.multiprocessing.reductions\nrebuild_tensor\nctorch\nTensor\n"
           "ctorch.multiprocessing.reductions\nrebuild_typed_storage\n"
           "ctorch.multiprocessing.reductions\nrebuild_storage_empty\n)R" +
           "ctorch\nfloat32\n\x86R(" + layout + "\x89t\x87R\x86" + "a.";
  };
  EXPECT_THAT(Message(pickle("K\x00K\x00\x85K\x01\x85"s), kNamed), "none");
  EXPECT_THAT(Message(pickle("K\x00K\x01\x85K\x01\x85"s), kNamed),
              HasSubstr("a: tensor: [1] does not fit in a storage of 0 F32"));
  EXPECT_THAT(Message(pickle("K\x00K\x01\x85K\x01K\x01\x86"s), kNamed),
              HasSubstr("a: tensor: 1 extents with 2 strides"));
  EXPECT_THAT(Message(pickle("J\xff\xff\xff\xffK\x01\x85K\x01\x85"s), kNamed),
              HasSubstr("expected an offset"));
  EXPECT_THAT(Message(pickle("K\x00J\xff\xff\xff\xff\x85K\x01\x85"s), kNamed),
              HasSubstr("shape: expected extents of 0 or more"));
  EXPECT_THAT(
      Message(pickle("K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85"s), kNamed),
      HasSubstr("does not fit"));
}

TEST(TensorPayload, StridesMustStayInside) {
  std::string pickle = ReadData("named_by_value.pkl");
  // b.weight's strides (1, 3) become (1, 4): its last element would be 2 + 4 = 6 of 6.
  const size_t at = pickle.find("K\x01K\x03\x86", pickle.find("b.weight"));
  ASSERT_NE(at, std::string::npos);
  pickle[at + 3] = 4;
  EXPECT_THAT(Message(pickle, kNamed), HasSubstr("b.weight: tensor: [3, 2] from element 0 on"));
}

// A list of 2^20 - 1 Nones is within the bound of 2^21 values. Behind an outer pickle of as many
// and 10 more, 2^20 - 9 are left: the list, and Nones of two bytes each from byte 3 on.
TEST(TensorPayload, PicklesInThePickleShareItsBound) {
  std::string nones;
  for (int i = 0; i < (1 << 20) - 1; ++i) {
    nones += "Na";
  }
  const std::string inner = "\x80\x02]" + nones + ".";
  const auto size = static_cast<uint32_t>(inner.size());
  const std::string length(reinterpret_cast<const char*>(&size), sizeof(size));
  const std::string item = "X\x01\x00\x00\x00"s + "acm\nLocalSerializedTensor\n)R}" +
                           "X\x06\x00\x00\x00"s + "values]B" + length + inner + "asb\x86" + "a";
  EXPECT_THAT(Message("\x80\x02]" + item + ".", kNamed),
              HasSubstr("a: expected a tensor, got a list"));
  EXPECT_THAT(Message("\x80\x02]" + item + nones + ".", kNamed),
              HasSubstr("a: pickle: byte 2097135: more than 1048567 values"));
}

TEST(TensorPayload, CopiesOfStridedTensorsAreBounded) {
  const auto payload =
      TensorPayload::Read(ReadData("named_by_value.pkl"), kNamed, {.copied_bytes_max = 23});
  EXPECT_THAT(payload.error().message(), HasSubstr("b.weight: tensors that are not contiguous"));
}

TEST(TensorPayload, RefusesEveryTruncation) {
  const std::string pickle = ReadData("bucket_by_value.pkl");
  for (size_t size = 0; size < pickle.size(); ++size) {
    EXPECT_FALSE(TensorPayload::Read(pickle.substr(0, size), kBucket).has_value()) << size;
  }
}

}  // namespace
}  // namespace octavo
