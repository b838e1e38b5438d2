// Result<T>: a value, or an Error that says what was found, what was expected and what to do.
// Owns the error kinds that exit codes and HTTP statuses are made from. Taking the value of an
// error is a CHECK failure.
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace bantam {

enum class ErrorKind {
  refused,    // wrong usage or unsupported input: exit code 2, HTTP 400
  failed,     // the machine or a file let us down: exit code 1, HTTP 500
  not_found,  // HTTP 404
  busy,       // queue full or loading: HTTP 503
  too_long,   // the prompt does not fit the context: HTTP 400 exceed_context_size_error
  cancelled,  // the caller asked for it
};

struct Error {
  ErrorKind kind = ErrorKind::failed;
  std::string message;
};

inline Error refused(std::string message) { return {ErrorKind::refused, std::move(message)}; }
inline Error failed(std::string message) { return {ErrorKind::failed, std::move(message)}; }

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & {
    CHECK(ok());
    return *std::get_if<0>(&state_);
  }
  const T& value() const& {
    CHECK(ok());
    return *std::get_if<0>(&state_);
  }
  T&& value() && {
    CHECK(ok());
    return std::move(*std::get_if<0>(&state_));
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

  const Error& error() const {
    CHECK(!ok());
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, Error> state_;
};

struct Ok {};
using Status = Result<Ok>;

}  // namespace bantam
