#include "storage/segment_store.h"
