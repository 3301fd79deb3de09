/* What C and C++ users include. */
#ifndef HOTLOOP_H
#define HOTLOOP_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#include "hotloop_decls.h"
#ifdef __cplusplus
}
#endif
#endif
