#include "storage/memory_store.h"
