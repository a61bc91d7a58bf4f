#pragma once
// LOG(INFO, "update committed version={} pause_ms={:.1f}", v, ms): one line an event on stderr,
// key=value with units, never one a token.

#include <fmt/core.h>

#include <string_view>

namespace octavo {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Writes one line. Thread-safe.
void LogLine(LogLevel level, std::string_view line);
// Lines below `level` are dropped. Default kInfo.
void SetLogLevel(LogLevel level);

#define OCTAVO_LOG_LEVEL_DEBUG ::octavo::LogLevel::kDebug
#define OCTAVO_LOG_LEVEL_INFO ::octavo::LogLevel::kInfo
#define OCTAVO_LOG_LEVEL_WARNING ::octavo::LogLevel::kWarning
#define OCTAVO_LOG_LEVEL_ERROR ::octavo::LogLevel::kError
#define LOG(level, ...) ::octavo::LogLine(OCTAVO_LOG_LEVEL_##level, ::fmt::format(__VA_ARGS__))

}  // namespace octavo
