#include "server/fields.h"

#include <cmath>

#include "base/limits.h"

namespace bantam {

Result<Json> parse_json(std::string_view text) {
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kMaxJsonDepth;
    return depth <= kMaxJsonDepth;
  };
  Json value = Json::parse(text, watch, false);
  if (too_deep)
    return refused("the JSON body is nested deeper than " + std::to_string(kMaxJsonDepth) +
                   " levels");
  if (value.is_discarded()) return refused("the body is not valid JSON");
  if (!value.is_object()) return refused("the JSON body must be an object");
  return value;
}

std::string dump_json(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void Fields::fail(std::string message) {
  if (error_.empty()) error_ = std::move(message);
}

const Json* Fields::find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool Fields::has(const char* name) const { return find(name) != nullptr; }

bool Fields::boolean(const char* name, bool missing) {
  const Json* value = find(name);
  if (value == nullptr) return missing;
  if (!value->is_boolean()) {
    fail(std::string("'") + name + "' must be true or false");
    return missing;
  }
  return value->get<bool>();
}

int64_t Fields::integer(const char* name, int64_t missing, int64_t min, int64_t max) {
  const Json* value = find(name);
  if (value == nullptr) return missing;
  const std::string expected =
      "' must be a whole number from " + std::to_string(min) + " to " + std::to_string(max);
  // 64.0 is a whole number too: some clients write every number as a float.
  double number = 0;
  if (value->is_number_float()) {
    number = value->get<double>();
    if (!(std::abs(number) < 9e15) || number != std::floor(number)) {
      fail(std::string("'") + name + expected);
      return missing;
    }
  } else if (!value->is_number_integer() ||
             (value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX)) {
    fail(std::string("'") + name + expected);
    return missing;
  }
  const int64_t whole =
      value->is_number_float() ? static_cast<int64_t>(number) : value->get<int64_t>();
  if (whole < min || whole > max) {
    fail(std::string("'") + name + expected);
    return missing;
  }
  return whole;
}

double Fields::number(const char* name, double missing) {
  const Json* value = find(name);
  if (value == nullptr) return missing;
  if (!value->is_number() || !(std::abs(value->get<double>()) <= 1e30)) {
    fail(std::string("'") + name + "' must be a number");
    return missing;
  }
  return value->get<double>();
}

std::string Fields::text(const char* name, std::string missing) {
  const Json* value = find(name);
  if (value == nullptr) return missing;
  if (!value->is_string()) {
    fail(std::string("'") + name + "' must be a string");
    return missing;
  }
  return value->get<std::string>();
}

std::vector<std::string> Fields::texts(const char* name) {
  std::vector<std::string> out;
  const Json* value = find(name);
  if (value == nullptr) return out;
  if (value->is_string()) return {value->get<std::string>()};
  bool fine = value->is_array() && value->size() <= kMaxStopStrings;
  for (size_t i = 0; fine && i < value->size(); ++i) {
    fine = (*value)[i].is_string();
    if (fine) out.push_back((*value)[i].get<std::string>());
  }
  if (!fine) fail(std::string("'") + name + "' must be a string or an array of at most 64 strings");
  return out;
}

void Fields::unsupported(const char* name, const Json& harmless) {
  const Json* value = find(name);
  if (value == nullptr || *value == harmless) return;
  const bool empty =
      (value->is_array() || value->is_object() || value->is_string()) && value->empty();
  if (!empty) fail(std::string("'") + name + "' is not supported yet");
}

}  // namespace bantam
