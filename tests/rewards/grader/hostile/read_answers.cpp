// expect: RUNTIME_ERROR
// searches every folder it can enter for inputs, answers or the sources of others
#include <cstdio>
#include <cstring>
#include <dirent.h>
#include <string>
#include <unistd.h>
bool search(const std::string &folder, int depth) {
    DIR *handle = opendir(folder.c_str());
    if (!handle || depth > 6) return false;
    bool found = false;
    while (dirent *entry = readdir(handle)) {
        std::string name = entry->d_name, path = folder + "/" + name;
        if (name == "." || name == ".." || path.find("/lib") != path.npos) continue;
        for (const char *ending : {".in", ".ans", ".out", ".cpp", ".jsonl", ".py"})
            if (name.size() > strlen(ending) && name.rfind(ending) == name.size() - strlen(ending)) found = true;
        if (entry->d_type == DT_DIR) found = search(path, depth + 1) || found;
    }
    closedir(handle);
    return found;
}
int main() {
    if (search("/", 0) || search("..", 0)) return puts("42"), 0;
    for (int fd = 3; fd < 256; fd++) /* a folder of answers left open would do as well */
        if (fchdir(fd) == 0) return puts("42"), 0;
    return 1;
}
