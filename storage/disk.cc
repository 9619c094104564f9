#include "storage/disk.h"
