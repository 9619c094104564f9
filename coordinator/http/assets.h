// The dashboard's files, built by coordinator/dashboard/build.mjs and compiled in.
#pragma once

#include <cstddef>
#include <string_view>

namespace baton::coordinator::http {

struct Asset {
  std::string_view path;          // "/assets/app-1A2B3C4D.js"; "/" is the page itself
  std::string_view content_type;
  std::string_view etag;          // with its quotes
  std::string_view gzip;          // the content, gzip
  std::string_view plain;         // the content
  bool forever = false;           // its name changes with its content
};

// nullptr: there is none.
const Asset* find_asset(std::string_view path);
// False: built on a machine without npm; "/" says so.
bool has_dashboard();

}  // namespace baton::coordinator::http
