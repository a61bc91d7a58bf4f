#include "octavo/cli/cli.h"

int main(int argc, char** argv) { return octavo::RunCli(argc, argv); }
