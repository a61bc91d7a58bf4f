// Weight calls that inspect, and the brackets that some trainers put around an update.

#include "octavo/base/status.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"

namespace octavo {

void Application::WeightsByName(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("WeightsByName is not built")));
}

void Application::WeightsChecker(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("WeightsChecker is not built")));
}

void Application::BeginWeightUpdate(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("BeginWeightUpdate is not built")));
}

void Application::EndWeightUpdate(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("EndWeightUpdate is not built")));
}

void Application::PostProcessWeights(const HttpRequest& /*request*/, const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("PostProcessWeights is not built")));
}

void Application::Profile(const WriterPtr& writer) {
  writer->Send(RequestError(Unsupported("Profile is not built")));
}

}  // namespace octavo
