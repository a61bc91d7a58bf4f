#pragma once
// RecordingWriter: a response that is kept instead of sent.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/server/http.h"

namespace octavo {

class RecordingWriter final : public ResponseWriter {
 public:
  void Send(HttpResponse response) override { sent = std::move(response); }
  void StartStream() override { streaming = true; }
  void Write(std::string bytes) override { events.push_back(std::move(bytes)); }
  void Finish() override { finished = true; }
  int64_t PendingBytes() const override { return pending_bytes; }
  void OnPeerGone(std::function<void()> callback) override { on_gone = std::move(callback); }

  std::optional<HttpResponse> sent;
  std::vector<std::string> events;
  bool streaming = false;
  bool finished = false;
  int64_t pending_bytes = 0;
  std::function<void()> on_gone;
};

}  // namespace octavo
