from hypothesis import settings

settings.register_profile("shared-cores", deadline=None)  # the first call of a kernel is slow
settings.load_profile("shared-cores")
