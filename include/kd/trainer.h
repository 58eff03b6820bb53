#include <kd/device.h>
