/* Says what the headers say of what the plugin knows: a line for each call in facts.h, which the test writes. */
#include <stddef.h>
#include <stdio.h>

#include <daemon.h>
#include <kernel/kernel_ipsec.h>
#include <plugins/plugin_feature.h>

#define TYPE(type) printf("%zu\n", sizeof(type));
#define FIELD(type, field) printf("%zu %zu\n", offsetof(type, field), sizeof(((type *)0)->field));
#define VALUE(name) printf("%lld\n", (long long)name);

int main(void)
{
#include "facts.h"
    return 0;
}
