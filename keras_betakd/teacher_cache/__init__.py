"""Stores a teacher's outputs on disk, so that it runs once and not in every epoch.

`build.cache_teacher` writes them; `teacher.CachedTeacher` replaces the teacher in a
distiller. Both are exported by `keras_betakd`.
"""
