// octavo._core: the C ABI (octavo/octavo.h) as Python sees it. No logic: octavo/*.py has what there
// is of it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "octavo/octavo.h"
#include "tensors.h"

namespace octavo_python {
namespace py = pybind11;
namespace {

template <typename T, void (*kFree)(T*)>
struct Free {
  void operator()(T* object) const { kFree(object); }
};
using ThreadsPtr = std::unique_ptr<octavo_threads, Free<octavo_threads, octavo_threads_free>>;
using PolicyPtr = std::unique_ptr<octavo_policy, Free<octavo_policy, octavo_policy_free>>;
using ClientPtr = std::unique_ptr<octavo_client, Free<octavo_client, octavo_client_free>>;
using UpdatePtr = std::unique_ptr<octavo_update, Free<octavo_update, octavo_update_free>>;

// Runs a call of the C ABI without the GIL, and throws what it answers.
template <typename Call>
void Run(const Call& call) {
  octavo_error error = {};
  octavo_status status = OCTAVO_OK;
  {
    const py::gil_scoped_release release;
    status = call(&error);
  }
  Check(status, error);
}

// A call that gives text.
template <typename Call>
std::string TextOf(const Call& call) {
  octavo_buf buf = {};
  Run([&](octavo_error* error) { return call(&buf, error); });
  std::string text(buf.data, buf.size);
  octavo_buf_free(&buf);
  return text;
}

const char* OrNull(const std::optional<std::string>& text) {
  return text.has_value() ? text->c_str() : nullptr;
}

struct Threads {
  explicit Threads(int num_threads) {
    octavo_threads* threads = nullptr;
    Run([&](octavo_error* error) { return octavo_threads_create(num_threads, &threads, error); });
    handle.reset(threads);
  }

  ThreadsPtr handle;
};

struct QuantizeCall {
  std::string name;
  std::optional<float> shared_amax;
  octavo_quantize_options options = {};

  QuantizeCall(const std::string& format, const std::string& layout, std::string given_name,
               std::optional<float> amax, bool direct, Threads* threads)
      : name(std::move(given_name)), shared_amax(amax) {
    options.struct_size = sizeof(options);
    options.format = octavo_format_parse(format.c_str());
    if (options.format < 0) {
      throw py::value_error(
          "format: expected bf16, fp8, fp8-ue8m0, fp8-channel, fp8-tensor, mxfp8 "
          "or nvfp4, got " +
          format);
    }
    if (layout != "default" && layout != "compressed-tensors") {
      throw py::value_error("layout: expected default or compressed-tensors, got " + layout);
    }
    options.layout = layout == "default" ? OCTAVO_LAYOUT_DEFAULT : OCTAVO_LAYOUT_COMPRESSED_TENSORS;
    options.name = name.c_str();
    options.shared_amax = shared_amax.has_value() ? &*shared_amax : nullptr;
    options.direct = direct ? 1 : 0;
    options.threads = threads == nullptr ? nullptr : threads->handle.get();
  }
  QuantizeCall(const QuantizeCall&) = delete;
  QuantizeCall& operator=(const QuantizeCall&) = delete;
};

std::vector<Array> Quantize(const View& view, const QuantizeCall& call) {
  octavo_quantized* made = nullptr;
  const octavo_tensor tensor = view.tensor();
  Run([&](octavo_error* error) { return octavo_quantize(&tensor, &call.options, &made, error); });
  const std::shared_ptr<octavo_quantized> quantized(made, octavo_quantized_free);
  std::vector<Array> parts;
  for (int32_t i = 0; i < octavo_quantized_num_parts(made); ++i) {
    parts.emplace_back(quantized, i);
  }
  return parts;
}

float Amax(const View& view, const QuantizeCall& call) {
  float amax = 0.0F;
  const octavo_tensor tensor = view.tensor();
  Run([&](octavo_error* error) { return octavo_amax(&tensor, &call.options, &amax, error); });
  return amax;
}

struct Policy {
  static Policy Load(const std::string& model_dir, const std::optional<std::string>& toml) {
    octavo_policy* made = nullptr;
    Run([&](octavo_error* error) {
      return octavo_policy_load(model_dir.c_str(), OrNull(toml), &made, error);
    });
    return {.handle = PolicyPtr(made)};
  }
  static Policy Parse(const std::string& json) {
    octavo_policy* made = nullptr;
    Run([&](octavo_error* error) {
      return octavo_policy_parse(json.data(), json.size(), &made, error);
    });
    return {.handle = PolicyPtr(made)};
  }
  std::string Manifest() const {
    return TextOf([&](octavo_buf* out, octavo_error* error) {
      return octavo_policy_manifest(handle.get(), out, error);
    });
  }

  PolicyPtr handle;
};

struct ClientArgs {
  std::vector<std::string> urls;
  std::optional<std::string> api_key;
  double connect_timeout_s;
  double idle_timeout_s;
};

struct Client {
  explicit Client(const ClientArgs& args) {
    std::vector<const char*> urls;
    for (const std::string& url : args.urls) {
      urls.push_back(url.c_str());
    }
    octavo_client_options options = {};
    options.struct_size = sizeof(options);
    options.urls = urls.data();
    options.num_urls = urls.size();
    options.api_key = OrNull(args.api_key);
    options.connect_timeout_s = args.connect_timeout_s;
    options.idle_timeout_s = args.idle_timeout_s;
    octavo_client* made = nullptr;
    Run([&](octavo_error* error) { return octavo_client_create(&options, &made, error); });
    handle.reset(made);
  }
  Policy Manifest() const {
    octavo_policy* made = nullptr;
    Run([&](octavo_error* error) { return octavo_client_manifest(handle.get(), &made, error); });
    return {.handle = PolicyPtr(made)};
  }
  std::string Checksum(const std::optional<std::string>& pattern) const {
    return TextOf([&](octavo_buf* out, octavo_error* error) {
      return octavo_client_checksum(handle.get(), OrNull(pattern), out, error);
    });
  }

  ClientPtr handle;
};

struct UpdateArgs {
  std::optional<std::string> weight_version;
  std::string in_flight;
  std::string staging;
  bool in_trainer;
  int64_t bucket_bytes;
};

struct Update {
  Update(const Client& client, const UpdateArgs& args, Threads* threads) {
    octavo_update_options options = {};
    options.struct_size = sizeof(options);
    options.weight_version = OrNull(args.weight_version);
    options.in_flight = args.in_flight.c_str();
    options.staging = args.staging.c_str();
    options.quantize_in = args.in_trainer ? OCTAVO_QUANTIZE_IN_TRAINER : OCTAVO_QUANTIZE_IN_ENGINE;
    options.bucket_bytes = args.bucket_bytes;
    options.threads = threads == nullptr ? nullptr : threads->handle.get();
    octavo_update* made = nullptr;
    Run([&](octavo_error* error) {
      return octavo_update_begin(client.handle.get(), &options, &made, error);
    });
    handle.reset(made);
  }
  void Put(const std::string& name, const View& view) const {
    const octavo_tensor tensor = view.tensor();
    Run([&](octavo_error* error) {
      return octavo_update_put(handle.get(), name.c_str(), &tensor, error);
    });
  }
  void Seal() const {
    Run([&](octavo_error* error) { return octavo_update_seal(handle.get(), error); });
  }
  std::string Commit() const {
    return TextOf([&](octavo_buf* out, octavo_error* error) {
      return octavo_update_commit(handle.get(), out, error);
    });
  }
  void Abort() const {
    const py::gil_scoped_release release;
    octavo_update_abort(handle.get());
  }

  UpdatePtr handle;
};

py::tuple TupleOf(const std::vector<int64_t>& extents) { return py::tuple(py::cast(extents)); }

void AddTensors(py::module_& module) {
  py::class_<View>(module, "View", "Memory of another object, as a tensor. Never written.")
      .def_static("from_dlpack", &View::FromDlpack, py::arg("capsule"))
      .def_static("from_buffer", &View::FromBuffer, py::arg("buffer"))
      .def("with_dtype", &View::WithDtype, py::arg("dtype"))
      .def_property_readonly("dtype",
                             [](const View& view) { return octavo_dtype_name(view.dtype()); })
      .def_property_readonly("shape", [](const View& view) { return TupleOf(view.shape()); })
      .def_property_readonly("strides", [](const View& view) { return TupleOf(view.strides()); })
      .def_property_readonly("address", &View::address);

  py::class_<Array>(module, "Array", py::buffer_protocol(),
                    "One tensor of a quantized weight: buffer protocol and DLPack. FP8, FP4 and "
                    "E8M0 are bytes to both, BF16 is uint16 to the buffer protocol; dtype says "
                    "what they are.")
      .def_buffer(&Array::Buffer)
      .def_property_readonly("name", [](const Array& array) { return array.part().name; })
      .def_property_readonly("kind", [](const Array& array) { return array.part().kind; })
      .def_property_readonly(
          "dtype", [](const Array& array) { return octavo_dtype_name(array.part().tensor.dtype); })
      .def_property_readonly("shape", [](const Array& array) { return TupleOf(array.shape()); })
      .def_property_readonly("nbytes", [](const Array& array) { return array.part().num_bytes; })
      .def("view", &Array::view)
      .def("tobytes",
           [](const Array& array) {
             return py::bytes(static_cast<const char*>(array.part().tensor.data),
                              array.part().num_bytes);
           })
      .def("__dlpack__", [](const Array& array, const py::kwargs&) { return array.Dlpack(); })
      .def("__dlpack_device__", [](const Array&) { return std::make_tuple(1, 0); });
}

void AddQuantize(py::module_& module) {
  py::class_<Threads>(module, "Threads").def(py::init<int>(), py::arg("num_threads"));
  module.def(
      "quantize",
      [](const View& view, const std::string& format, const std::string& layout,
         const std::string& name, std::optional<float> shared_amax, bool direct, Threads* threads) {
        return Quantize(view, QuantizeCall(format, layout, name, shared_amax, direct, threads));
      },
      py::arg("view"), py::arg("format"), py::arg("layout"), py::arg("name"),
      py::arg("shared_amax"), py::arg("direct"), py::arg("threads"));
  module.def(
      "amax",
      [](const View& view, const std::string& format, bool direct, Threads* threads) {
        return Amax(view, QuantizeCall(format, "default", "weight", {}, direct, threads));
      },
      py::arg("view"), py::arg("format"), py::arg("direct"), py::arg("threads"));
}

void AddUpdates(py::module_& module) {
  py::class_<Policy>(module, "Policy")
      .def_static("load", &Policy::Load, py::arg("model_dir"), py::arg("toml"))
      .def_static("parse", &Policy::Parse, py::arg("json"))
      .def("manifest", &Policy::Manifest);
  py::class_<Client>(module, "Client")
      .def(py::init([](std::vector<std::string> urls, std::optional<std::string> api_key,
                       double connect_timeout_s, double idle_timeout_s) {
             return Client(ClientArgs{std::move(urls), std::move(api_key), connect_timeout_s,
                                      idle_timeout_s});
           }),
           py::arg("urls"), py::arg("api_key"), py::arg("connect_timeout_s"),
           py::arg("idle_timeout_s"))
      .def("manifest", &Client::Manifest)
      .def("checksum", &Client::Checksum, py::arg("pattern"));
  py::class_<Update>(module, "Update")
      .def(py::init([](const Client& client, std::optional<std::string> weight_version,
                       std::string in_flight, std::string staging, bool in_trainer,
                       int64_t bucket_bytes, Threads* threads) {
             return Update(client,
                           UpdateArgs{std::move(weight_version), std::move(in_flight),
                                      std::move(staging), in_trainer, bucket_bytes},
                           threads);
           }),
           py::arg("client"), py::arg("weight_version"), py::arg("in_flight"), py::arg("staging"),
           py::arg("in_trainer"), py::arg("bucket_bytes"), py::arg("threads"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 8>())
      .def("put", &Update::Put, py::arg("name"), py::arg("view"))
      .def("seal", &Update::Seal)
      .def("commit", &Update::Commit)
      .def("abort", &Update::Abort);
}

}  // namespace
}  // namespace octavo_python

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C ABI of Octavo; use the package octavo.";
  module.attr("version") = octavo_version();
  module.attr("abi_version") = octavo_abi_version();
  octavo_python::AddTensors(module);
  octavo_python::AddQuantize(module);
  octavo_python::AddUpdates(module);
}
