# cmake -DWEB=DIR -DOUT=FILE.cc -P EmbedStatusPage.cmake
#
# Writes the C++ source that holds the status page: status.html with status.css and status.js in
# place of @STYLE@ and @SCRIPT@, and a Content-Security-Policy that allows these two texts, by
# their SHA-256, and nothing else but calls to the server that sent the page.
cmake_policy(VERSION 3.25)

# CSP wants digests in Base64, CMake gives hexadecimal digits: 32 bytes, so one byte of padding.
function(sha256_base64 file out)
  set(alphabet "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
  file(SHA256 ${file} hex)
  string(APPEND hex "00")
  set(text "")
  foreach(start RANGE 0 60 6)
    string(SUBSTRING ${hex} ${start} 6 group)
    foreach(shift 18 12 6 0)
      math(EXPR index "(0x${group} >> ${shift}) & 63")
      string(SUBSTRING ${alphabet} ${index} 1 letter)
      string(APPEND text "${letter}")
    endforeach()
  endforeach()
  string(SUBSTRING "${text}" 0 43 text)
  set(${out} "${text}=" PARENT_SCOPE)
endfunction()

file(READ ${WEB}/status.html page)
file(READ ${WEB}/status.css style)
file(READ ${WEB}/status.js script)
sha256_base64(${WEB}/status.css style_hash)
sha256_base64(${WEB}/status.js script_hash)
string(REPLACE "@STYLE@" "${style}" page "${page}")
string(REPLACE "@SCRIPT@" "${script}" page "${page}")
file(WRITE ${OUT} "// Made by cmake/EmbedStatusPage.cmake from octavo/server/web.
#include \"octavo/server/status_page.h\"

namespace octavo {

std::string_view StatusPageHtml() {
  return R\"octavo-page(${page})octavo-page\";
}

std::string_view StatusPageCsp() {
  return \"default-src 'none'; script-src 'sha256-${script_hash}'; \"
         \"style-src 'sha256-${style_hash}'; connect-src 'self'; img-src data:; \"
         \"base-uri 'none'; form-action 'none'; frame-ancestors 'none'\";
}

}  // namespace octavo
")
