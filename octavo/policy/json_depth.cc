#include "octavo/policy/json_depth.h"

#include <string_view>

namespace octavo {

bool IsShallowJson(std::string_view json) {
  int depth = 0;
  bool in_string = false;
  bool is_escaped = false;
  for (const char c : json) {
    if (in_string) {
      in_string = is_escaped || c != '"';
      is_escaped = !is_escaped && c == '\\';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kJsonDepthMax) {
        return false;
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return true;
}

}  // namespace octavo
