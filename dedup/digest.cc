#include "dedup/digest.h"
