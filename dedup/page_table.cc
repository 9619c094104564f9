#include "dedup/page_table.h"
