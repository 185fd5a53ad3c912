/* What strongSwan's ./configure finds out, as far as its headers ask, with glibc and gcc. */
#define CONFIG_H_INCLUDED
#define HAVE_STDBOOL_H 1
#define HAVE__BOOL 1
#define HAVE_ALLOCA_H 1
#define HAVE_SYS_PARAM_H 1
#define HAVE_CLOSEFROM 1
#define HAVE_EXPLICIT_BZERO 1
#define HAVE_MEMRCHR 1
#define HAVE_FMEMOPEN 1
#define HAVE_INT128
#define HAVE_CLOCK_GETTIME 1
#define HAVE_CONDATTR_CLOCK_MONOTONIC
#define HAVE_PRINTF_SPECIFIER
#define HAVE_GCC_SYNC_OPERATIONS
#define HAVE_SIGWAITINFO 1
#define USE_IKEV2
/* Debian configures with --enable-mediation. */
#define ME
