"""A teacher's outputs on disk, so that it runs once and not in every epoch.

`build.cache_teacher` writes them, `teacher.CachedTeacher` stands in for the teacher in
a distiller; both are names of `keras_betakd` itself.
"""
