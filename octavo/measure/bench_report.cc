// What people and scripts read of a BenchReport: table, verdicts, JSON, picture.

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/kernels/input_ranges.h"
#include "octavo/measure/bench.h"
#include "octavo/measure/stats.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

bool HasSeveralSubjects(const BenchReport& report) {
  return std::ranges::any_of(
      report.rows, [&](const BenchRow& row) { return row.format != report.rows.front().format; });
}

std::string Range(const Spread& spread) {
  return fmt::format("({:.1f} .. {:.1f})", spread.min, spread.max);
}

std::string RatioText(const Spread& ratio) {
  return fmt::format("{:.2f} ({:.2f} .. {:.2f})", ratio.median, ratio.min, ratio.max);
}

// Empty where the ratio is clearly above 1.
std::string Verdict(const BenchRow& row, std::string_view first, std::string_view phase,
                    const Spread& ratio) {
  if (ratio.min > 1.0) {
    return {};
  }
  const std::string_view what = ratio.max < 1.0 ? "does not pay" : "makes no clear difference";
  return fmt::format("{} {} in {} at batch {}, input {}: {} x {}", row.format, what, phase,
                     row.batch, row.input_len, RatioText(ratio), first);
}

Json RangeJson(const Spread& spread) { return {spread.min, spread.max}; }

Json RowJson(const BenchRow& row, bool with_ratios) {
  Json json = {{"format", row.format},
               {"recipe", row.recipe},
               {"emulated", row.is_emulated},
               {"batch", row.batch},
               {"input_len", row.input_len},
               {"output_len", row.output_len},
               {"weight_bytes_per_step", row.weight_bytes_per_step},
               {"prefill_tok_per_s", row.prefill_tok_per_s.median},
               {"prefill_tok_per_s_range", RangeJson(row.prefill_tok_per_s)},
               {"decode_tok_per_s", row.decode_tok_per_s.median},
               {"decode_tok_per_s_range", RangeJson(row.decode_tok_per_s)},
               {"share_of_read_bandwidth", row.share_of_read_bandwidth},
               {"share_of_matrix_peak", row.share_of_matrix_peak}};
  const InputRanges& inputs = row.nvfp4_inputs;
  if (inputs.num_groups > 0) {
    json["nvfp4_inputs"] = {
        {"groups", inputs.num_groups}, {"above", inputs.num_above}, {"below", inputs.num_below}};
  }
  if (with_ratios) {
    json["prefill_ratio"] = row.prefill_ratio.median;
    json["prefill_ratio_range"] = RangeJson(row.prefill_ratio);
    json["decode_ratio"] = row.decode_ratio.median;
    json["decode_ratio_range"] = RangeJson(row.decode_ratio);
  }
  return json;
}

}  // namespace

std::vector<std::string> BenchVerdicts(const BenchReport& report) {
  std::vector<std::string> verdicts;
  if (!HasSeveralSubjects(report)) {
    return verdicts;
  }
  const std::string& first = report.rows.front().format;
  for (const BenchRow& row : report.rows) {
    if (row.format == first) {
      continue;
    }
    for (std::string verdict : {Verdict(row, first, "prefill", row.prefill_ratio),
                                Verdict(row, first, "decode", row.decode_ratio)}) {
      if (!verdict.empty()) {
        verdicts.push_back(std::move(verdict));
      }
    }
  }
  return verdicts;
}

std::string BenchReportText(const BenchReport& report) {
  const BenchMachine& machine = report.machine;
  const bool with_ratios = HasSeveralSubjects(report);
  std::string text = fmt::format(
      "{}: {:.2f} GFLOP a token; {}, {} threads: read {:.1f} GB/s, matrix peak {:.2f} TFLOP/s\n\n"
      "{:<12} {:>5} {:>6} {:>6} {:>7} {:>13} {:>19} {:>13} {:>19} {:>7} {:>7}",
      report.model_dir, static_cast<double>(report.ops_per_token) * 1e-9, machine.backend,
      machine.num_threads, machine.read_gb_per_s, machine.matrix_tflop_per_s, "format", "batch",
      "input", "output", "GB/step", "prefill tok/s", "(min .. max)", "decode tok/s", "(min .. max)",
      "% peak", "% read");
  text += with_ratios ? fmt::format(" {:>20} {:>20}\n", "prefill ratio", "decode ratio") : "\n";
  for (const BenchRow& row : report.rows) {
    text += fmt::format(
        "{:<12} {:>5} {:>6} {:>6} {:>7.3f} {:>13.1f} {:>19} {:>13.1f} {:>19} {:>7.1f} {:>7.1f}",
        row.format, row.batch, row.input_len, row.output_len, row.weight_bytes_per_step * 1e-9,
        row.prefill_tok_per_s.median, Range(row.prefill_tok_per_s), row.decode_tok_per_s.median,
        Range(row.decode_tok_per_s), 100.0 * row.share_of_matrix_peak,
        100.0 * row.share_of_read_bandwidth);
    text += with_ratios ? fmt::format(" {:>20} {:>20}\n", RatioText(row.prefill_ratio),
                                      RatioText(row.decode_ratio))
                        : "\n";
  }
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const BenchRow& row = report.rows[i];
    const auto first = std::ranges::find(report.rows, row.format, &BenchRow::format);
    if (!row.recipe.empty() && first - report.rows.begin() == static_cast<ptrdiff_t>(i)) {
      text += fmt::format("\n{}: {}{}", row.format, row.recipe,
                          row.is_emulated ? ", emulated on this hardware" : "");
    }
  }
  for (const std::string& verdict : BenchVerdicts(report)) {
    text += "\n" + verdict;
  }
  return text;
}

std::string BenchReportJson(const BenchReport& report) {
  const bool with_ratios = HasSeveralSubjects(report);
  Json json = {{"model", report.model_dir},
               {"machine",
                {{"read_gb_per_s", report.machine.read_gb_per_s},
                 {"matrix_tflop_per_s", report.machine.matrix_tflop_per_s},
                 {"backend", report.machine.backend},
                 {"threads", report.machine.num_threads}}},
               {"ops_per_token", report.ops_per_token}};
  json["rows"] = Json::array();
  for (const BenchRow& row : report.rows) {
    json["rows"].push_back(RowJson(row, with_ratios));
  }
  if (with_ratios) {
    json["verdicts"] = BenchVerdicts(report);
  }
  return json.dump();
}

// --- Picture ------------------------------------------------------------------------------------

namespace {

constexpr double kBarHeight = 16.0;
constexpr double kBarStep = 20.0;
constexpr double kGroupGap = 14.0;
constexpr double kLabelWidth = 150.0;
constexpr double kPanelWidth = 330.0;
constexpr double kBarWidthMax = 220.0;
constexpr double kTop = 64.0;

struct Panel {
  std::string_view title;
  Spread BenchRow::* rate;
  double left = 0.0;
};

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string TextAt(double x, double y, std::string_view extra, std::string_view text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, extra, Escape(text));
}

// One bar with its extremes as a thin line and its value behind it. Bars of one batch size have one
// scale.
std::string Bar(const Panel& panel, const BenchRow& row, double y, double largest) {
  const Spread& rate = row.*(panel.rate);
  const double unit = largest > 0.0 ? kBarWidthMax / largest : 0.0;
  std::string svg = fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"#2f6fde\"/>\n"
      "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#10243f\"/>\n",
      panel.left, y, rate.median * unit, kBarHeight, panel.left + rate.min * unit,
      panel.left + rate.max * unit, y + kBarHeight / 2, y + kBarHeight / 2);
  return svg + TextAt(panel.left + rate.max * unit + 6.0, y + 12.0, "fill=\"#333\"",
                      fmt::format("{:.1f}", rate.median));
}

}  // namespace

std::string BenchReportSvg(const BenchReport& report) {
  const std::array<Panel, 2> panels = {
      Panel{"prefill, tok/s", &BenchRow::prefill_tok_per_s, kLabelWidth},
      Panel{"decode, tok/s", &BenchRow::decode_tok_per_s, kLabelWidth + kPanelWidth}};
  std::string body;
  double y = kTop;
  for (size_t i = 0; i < report.rows.size(); ++i) {
    const BenchRow& row = report.rows[i];
    if (i > 0 && report.rows[i - 1].batch != row.batch) {
      y += kGroupGap;
    }
    body +=
        TextAt(8.0, y + 12.0, "fill=\"#333\"", fmt::format("{}, batch {}", row.format, row.batch));
    for (const Panel& panel : panels) {
      double largest = 0.0;
      for (const BenchRow& other : report.rows) {
        largest = std::max(largest, other.batch == row.batch ? (other.*(panel.rate)).max : 0.0);
      }
      body += Bar(panel, row, y, largest);
    }
    y += kBarStep;
  }
  std::string head = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      kLabelWidth + 2 * kPanelWidth, y + 12.0);
  head += TextAt(8.0, 20.0, "font-size=\"14\" fill=\"#111\"",
                 fmt::format("{}: {}, {} threads, read {:.1f} GB/s, peak {:.2f} TFLOP/s",
                             report.model_dir, report.machine.backend, report.machine.num_threads,
                             report.machine.read_gb_per_s, report.machine.matrix_tflop_per_s));
  for (const Panel& panel : panels) {
    head += TextAt(panel.left, 48.0, "fill=\"#111\" font-weight=\"bold\"", panel.title);
  }
  return head + body + "</svg>\n";
}

}  // namespace octavo
