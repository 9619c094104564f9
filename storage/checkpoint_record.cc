#include "storage/checkpoint_record.h"
