#include "hotloop.h"
