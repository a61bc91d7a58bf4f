#include "octavo/policy/engine_readers.h"

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/quantization_fields.h"

namespace octavo {

Result<EngineReaders> MakeEngineReaders(const ModelSpec& spec, ForeignEngine engine,
                                        Dialect dialect, const QuantizationFields& fields) {
  ReaderContext context{.mapping = DeclaredMappingOf(spec, engine)};
  EngineReaders readers;
  ASSIGN_OR_RETURN(readers.main, MakeReader(dialect, fields, context));
  context.mapper = MtpMapperOf(spec, engine);
  ASSIGN_OR_RETURN(readers.mtp, MakeReader(dialect, fields, context));
  return readers;
}

}  // namespace octavo
