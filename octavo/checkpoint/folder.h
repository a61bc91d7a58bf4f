#pragma once
// What lies in a checkpoint folder, sorted into weights and the rest by name alone.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

// Names, not paths; each list sorted as bytes.
struct CheckpointFolder {
  std::vector<std::string> safetensors;      // *.safetensors
  std::vector<std::string> foreign_weights;  // Pickles, GGUF and other weights that we do not read.
  std::vector<std::string> extra;            // What a converter copies along (docs/formats.md).
  std::vector<std::string> skipped;  // Neither: dangling links, sockets, hidden folders, ...
  bool has_index = false;
};

// Lists `dir`. Links to files count as files (the HF cache is made of them); links to folders are
// not followed.
// Errors: kNotFound, kInvalidArgument (not a folder), kInternal, naming the path.
Result<CheckpointFolder> ListCheckpointFolder(const std::string& dir);

// Copies `names` (files and whole folders) from one folder to another, each file under a temporary
// name first. Existing files are replaced. `to` must exist and may not lie inside a copied folder.
// Errors: those of the file system, naming the path.
Status CopyAlong(const std::string& from, const std::vector<std::string>& names,
                 const std::string& to);

}  // namespace octavo
