/* Which processor family is compiled for. */
#ifndef FNN_TARGET_H
#define FNN_TARGET_H
#if defined(__x86_64__) || defined(_M_X64)
#define FNN_TARGET_X86 1
#else
#define FNN_TARGET_X86 0
#endif
#if defined(__aarch64__)
#define FNN_TARGET_ARM64 1
#else
#define FNN_TARGET_ARM64 0
#endif
#endif
