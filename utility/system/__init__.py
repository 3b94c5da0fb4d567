"""The machine underneath: errors in a sentence, files, progress, memory, devices, processes."""
