#include "storage/page_store.h"
