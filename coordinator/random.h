// Randomness for identities and keys: getrandom(2), the kernel's CSPRNG.
#pragma once

#include <cstddef>
#include <string>

namespace baton::coordinator {

// `count` random bytes. Stops the program when the kernel gives none: a guessable key
// is worse than no coordinator. Source: getrandom(2): up to 256 bytes are never short.
std::string random_bytes(std::size_t count);
std::string random_hex(std::size_t bytes);

}  // namespace baton::coordinator
