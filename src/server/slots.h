// POST /slots/{id}?action=save|restore|erase: a slot's cache to and from a file of the folder given
// at start, or emptied. Refuses other slots and actions, and file names that could leave the
// folder.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "server/http.h"

namespace bantam {

// A bare name: no separators, not hidden, printable, of a sensible length.
Status check_slot_file(const std::string& name);

// Answers on `exchange` once the slot is idle and the action is done.
void change_slot(Engine& engine, const std::string& folder, const HttpRequest& request,
                 std::shared_ptr<Exchange> exchange);

}  // namespace bantam
