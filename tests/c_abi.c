/* What a C program does with liboctavo.so: quantize a strided matrix, read a policy, and be refused
 * by name. Built by tests/test_c_abi.py with -std=c11 -Wall -Wextra -pedantic. Prints the bytes of
 * each part as hexadecimal digits. Usage: c_abi MODEL_DIR */
#include <octavo/octavo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 3, COLS = 32 };

static void check(octavo_status status, const octavo_error* error, const char* what) {
  if (status != OCTAVO_OK) {
    fprintf(stderr, "%s: %s: %s\n", what, octavo_status_name(status), error->message);
    exit(1);
  }
}

static void quantize(octavo_format format) {
  float columns[COLS][ROWS]; /* The matrix, column by column. */
  const int64_t shape[2] = {ROWS, COLS};
  const int64_t strides[2] = {1, ROWS};
  const octavo_tensor tensor = {columns, OCTAVO_F32, 2, shape, strides};
  octavo_quantize_options options = {.struct_size = sizeof options, .format = format};
  octavo_quantized* quantized = NULL;
  octavo_error error;
  int32_t part_idx;

  for (int col = 0; col < COLS; ++col) {
    for (int row = 0; row < ROWS; ++row) {
      columns[col][row] = (float)(row * COLS + col) / 8.0F - 5.0F;
    }
  }
  options.name = "x.weight";
  check(octavo_quantize(&tensor, &options, &quantized, &error), &error, "quantize");
  for (part_idx = 0; part_idx < octavo_quantized_num_parts(quantized); ++part_idx) {
    octavo_part part;
    check(octavo_quantized_part(quantized, part_idx, &part, &error), &error, "part");
    printf("%s %s %s ", octavo_format_name(format), part.name,
           octavo_dtype_name(part.tensor.dtype));
    for (size_t i = 0; i < part.num_bytes; ++i) {
      printf("%02x", ((const unsigned char*)part.tensor.data)[i]);
    }
    printf("\n");
  }
  octavo_quantized_free(quantized);
}

int main(int argc, char** argv) {
  octavo_policy* policy = NULL;
  octavo_weight weight;
  octavo_error error;
  octavo_format format;

  if (argc != 2 || octavo_abi_version() != OCTAVO_ABI_VERSION) {
    return 2;
  }
  for (format = OCTAVO_FORMAT_BF16; format <= OCTAVO_FORMAT_NVFP4; ++format) {
    quantize(format);
  }
  check(octavo_policy_load(argv[1], "format = \"fp8\"", &policy, &error), &error, "policy");
  check(octavo_policy_find(policy, "model.layers.0.mlp.up_proj.weight", &weight, &error), &error,
        "find");
  printf("policy %s %s\n", weight.name, octavo_format_name(weight.format));
  if (octavo_policy_find(policy, "nothing", &weight, &error) != OCTAVO_NOT_FOUND ||
      strstr(error.message, "nothing") == NULL) {
    return 3;
  }
  octavo_policy_free(policy);
  return 0;
}
