"""Names of environment variables, for those who need them and not the settings' machinery."""

from typing import Final

ENV_PREFIX: Final = "JOURNAL_"
# No setting of the service: what the command line shows to one.
TOKEN_VARIABLE: Final = f"{ENV_PREFIX}TOKEN"
