# octavo_component(NAME DEPS component... LIBS target... [SOURCES file...])
#
# One static library a component, octavo_NAME, from the *.cc files of its folder (tests and mains
# apart), linking exactly DEPS; and one test program, octavo_NAME_test, from its *_test.cc files.
# scripts/check_layers.py holds every #include against the same table.
function(octavo_component name)
  cmake_parse_arguments(ARG "" "DIR" "DEPS;LIBS;SOURCES;TEST_LIBS" ${ARGN})
  if(NOT ARG_DIR)
    set(ARG_DIR ${name})
  endif()
  set(dir ${PROJECT_SOURCE_DIR}/octavo/${ARG_DIR})
  string(REPLACE "/" "_" target ${name})

  file(GLOB sources CONFIGURE_DEPENDS ${dir}/*.cc)
  list(APPEND sources ${ARG_SOURCES})
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$|/main\\.cc$")
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")

  if(sources)
    add_library(octavo_${target} STATIC ${sources})
    set(scope PUBLIC)
  else()
    add_library(octavo_${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_include_directories(octavo_${target} ${scope} ${PROJECT_SOURCE_DIR})
  list(TRANSFORM ARG_DEPS PREPEND octavo_)
  list(TRANSFORM ARG_DEPS REPLACE "/" "_")
  target_link_libraries(octavo_${target} ${scope} ${ARG_DEPS} ${ARG_LIBS})

  if(tests AND BUILD_TESTING)
    add_executable(octavo_${target}_test ${tests})
    target_link_libraries(octavo_${target}_test PRIVATE octavo_${target} GTest::gmock_main
                                                        ${ARG_TEST_LIBS})
    octavo_register_test(octavo_${target}_test)
  endif()
endfunction()

# A GoogleTest program as one ctest; it runs in the source tree, so that tests find tests/data.
function(octavo_register_test target)
  add_test(NAME ${target} COMMAND ${target} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${target} PROPERTIES TIMEOUT ${OCTAVO_TEST_TIMEOUT})
endfunction()

# octavo_fuzzer(NAME DEPS component...): fuzz/NAME_fuzzer.cc. With OCTAVO_FUZZ (Clang) a libFuzzer
# program; otherwise the same target run once over its committed seeds, as a test.
function(octavo_fuzzer name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  list(TRANSFORM ARG_DEPS PREPEND octavo_)
  list(TRANSFORM ARG_DEPS REPLACE "/" "_")
  set(source ${PROJECT_SOURCE_DIR}/fuzz/${name}_fuzzer.cc)
  if(OCTAVO_FUZZ)
    add_executable(${name}_fuzzer ${source})
    target_link_options(${name}_fuzzer PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${name}_fuzzer PRIVATE ${ARG_DEPS})
  elseif(BUILD_TESTING)
    add_executable(${name}_fuzz_replay ${source} ${PROJECT_SOURCE_DIR}/fuzz/replay_main.cc)
    target_link_libraries(${name}_fuzz_replay PRIVATE ${ARG_DEPS})
    add_test(NAME ${name}_fuzz_replay COMMAND ${name}_fuzz_replay
                                              ${PROJECT_SOURCE_DIR}/fuzz/corpus/${name})
  endif()
endfunction()
