// CheckIndexAgainstShards and CheckIndexFile of audit_checks.h.

#include <fmt/core.h>

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/checkpoint/shard_index.h"
#include "octavo/convert/audit.h"
#include "octavo/convert/audit_checks.h"
#include "octavo/convert/audit_codes.h"

namespace octavo {

void CheckIndexAgainstShards(const std::string& dir, AuditReport& report) {
  const auto text = ReadTextFile(dir + "/" + std::string(kShardIndexFile));
  if (!text) {
    return;
  }
  const auto index = ParseShardIndex(*text);
  if (!index) {
    return;  // Checkpoint::Open says what is wrong with it.
  }
  std::map<std::string, std::set<std::string, std::less<>>> stored;  // File -> its tensors.
  for (const std::string& file : index->Files()) {
    std::error_code error;
    if (!std::filesystem::exists(dir + "/" + file, error)) {
      report.findings.push_back(MakeFinding(
          "index-file", file,
          fmt::format("{}: expected the file, which {} names, found none", file, kShardIndexFile)));
      continue;
    }
    const auto shard = SafetensorsFile::Open(dir + "/" + file);
    if (!shard) {
      continue;
    }
    auto& tensors = stored[file];
    for (const SafetensorsEntry& entry : shard->header().entries) {
      tensors.insert(entry.name);
      const std::string* place = index->FileOf(entry.name);
      if (place == nullptr || *place != file) {
        report.findings.push_back(
            MakeFinding("index-unlisted", entry.name,
                        fmt::format("{}: stored in {}, expected {}", entry.name, file,
                                    place == nullptr ? std::string("it in the index") : *place)));
      }
    }
  }
  for (const auto& [tensor, file] : index->weight_map) {
    const auto found = stored.find(file);
    if (found != stored.end() && !found->second.contains(tensor)) {
      report.findings.push_back(MakeFinding(
          "index-tensor", tensor,
          fmt::format("{}: expected it in {}, as the index says, found none", tensor, file)));
    }
  }
}

void CheckIndexFile(const Checkpoint& checkpoint, AuditReport& report) {
  const std::string path = checkpoint.dir() + "/" + std::string(kShardIndexFile);
  const auto text = ReadTextFile(path);
  if (!text && checkpoint.shard_files().size() > 1) {
    report.findings.push_back(
        MakeFinding("index-missing", kShardIndexFile,
                    fmt::format("{}: expected an index for {} files, found none", checkpoint.dir(),
                                checkpoint.shard_files().size())));
  } else if (text) {
    const auto index = ParseShardIndex(*text);
    const bool matches = index.has_value() && index->total_bytes == report.bytes;
    if (!matches) {
      const std::string actual = index.has_value() && index->total_bytes
                                     ? std::to_string(*index->total_bytes)
                                     : std::string("none");
      report.findings.push_back(
          MakeFinding("total-size", kShardIndexFile,
                      fmt::format("{}: total_size: expected {} (the bytes of all tensors), got {}",
                                  kShardIndexFile, report.bytes, actual)));
    }
  }
  // What the reader passed over. Its word on total_size is ours above.
  for (const std::string& warning : checkpoint.warnings()) {
    if (warning.find("total_size") == std::string::npos) {
      report.findings.push_back(MakeFinding("checkpoint", checkpoint.dir(), warning));
    }
  }
}

}  // namespace octavo
