# Makes a C table of the comments at the heads of the losses' own files:
#     cmake -DROOT=src -DOUT=loss_texts.c -P texts.cmake
# One array of lines per loss, because C promises strings of 4095 characters at most.
set(tables "")
set(rows "")
foreach(list ops/row_list.h loss/loss_list.h)
    file(STRINGS ${ROOT}/${list} names REGEX "^KD_(ROW|FEATURE)\\(")
    foreach(name ${names})
        string(REGEX REPLACE "^KD_(ROW|FEATURE)\\(([a-z0-9_]+).*" "\\1 \\2" name "${name}")
        string(REPLACE " " ";" name "${name}")
        list(GET name 0 kind)
        list(GET name 1 name)
        if(kind STREQUAL ROW)
            set(file ${ROOT}/ops/rows/${name}.h)
        else()
            set(file ${ROOT}/loss/${name}.c)
        endif()
        file(READ ${file} text)
        string(FIND "${text}" "*/" end)
        string(SUBSTRING "${text}" 0 ${end} text)
        string(REGEX REPLACE "^/\\*\n?" "" text "${text}")
        string(REGEX REPLACE "\n \\* ?" "\n" text "\n${text}")
        string(REGEX REPLACE "[ \n]+$" "" text "${text}")
        string(REGEX REPLACE "^\n+" "" text "${text}")
        string(REPLACE "\\" "\\\\" text "${text}")
        string(REPLACE "\"" "\\\"" text "${text}")
        string(REPLACE "\n" "\",\n    \"" text "${text}")
        string(APPEND tables "static const char *const ${name}[] = {\n    \"${text}\", NULL\n};\n\n")
        string(APPEND rows "    { \"${name}\", ${name} },\n")
    endforeach()
endforeach()
file(WRITE ${OUT} "/* Made by src/loss/texts.cmake. */\n#include \"loss/loss.h\"\n\n${tables}"
    "static const struct {\n    const char *name;\n    const char *const *lines;\n} texts[] = {\n${rows}};\n\n"
    "const char *const *kd_loss_text(const char *name)\n{\n"
    "    for (int i = 0; i < KD_COUNT(texts); i++)\n"
    "        if (strcmp(texts[i].name, name) == 0) return texts[i].lines;\n    return NULL;\n}\n")
