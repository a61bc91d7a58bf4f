// ConvertReportJson: what a conversion did, for programs.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "octavo/convert/convert.h"
#include "octavo/formats/quantize.h"

namespace octavo {
namespace {

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

nlohmann::ordered_json LineJson(const ConvertedTensor& tensor) {
  nlohmann::ordered_json line = {{"name", tensor.name},
                                 {"role", tensor.role},
                                 {"format", tensor.format},
                                 {"rule", tensor.rule},
                                 {"bytes_in", tensor.bytes_in},
                                 {"bytes", tensor.bytes_out},
                                 {"relative_rms_error", nullptr},
                                 {"max_error", nullptr},
                                 {"saturated_share", nullptr},
                                 {"zero_blocks", nullptr},
                                 {"subnormal_scale_share", nullptr},
                                 {"note", tensor.note}};
  if (tensor.error.has_value()) {
    const QuantizationError& error = *tensor.error;
    line["relative_rms_error"] = error.RelativeRms();
    line["max_error"] = error.max_abs_error;
    line["saturated_share"] = Share(error.num_saturated, error.num_values);
    line["zero_blocks"] = error.num_zero_blocks;
    line["subnormal_scale_share"] = Share(error.num_subnormal_scales, error.num_scales);
  }
  return line;
}

}  // namespace

std::string ConvertReportJson(const ConvertReport& report) {
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  for (const ConvertedTensor& tensor : report.tensors) {
    tensors.push_back(LineJson(tensor));
  }
  const nlohmann::ordered_json json = {{"seconds", report.seconds},
                                       {"bytes_in", report.bytes_in},
                                       {"bytes_out", report.bytes_out},
                                       {"table_hash", report.table_hash},
                                       {"passed_through", report.passed_through},
                                       {"files_resumed", report.num_files_resumed},
                                       {"warnings", report.warnings},
                                       {"tensors", std::move(tensors)}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace octavo
