#pragma once
// The readers with which one engine judges all modules of a model.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/quantization_fields.h"

namespace octavo {

// const is thread-safe.
struct EngineReaders {
  std::unique_ptr<DialectReader> main;
  // Of the multi-token-prediction model, whose class renames entries.
  std::unique_ptr<DialectReader> mtp;

  const DialectReader& Of(const EngineModule& module) const { return module.is_mtp ? *mtp : *main; }
};

// Errors: those of MakeReader.
Result<EngineReaders> MakeEngineReaders(const ModelSpec& spec, ForeignEngine engine,
                                        Dialect dialect, const QuantizationFields& fields);

}  // namespace octavo
