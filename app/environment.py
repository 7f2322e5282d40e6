"""Names of environment variables, for those who need them and not the settings' machinery."""

from typing import Final

ENV_PREFIX: Final = "JOURNAL_"
# No settings of the service: what the command line shows to one, and what `journal migrate` gives
# to its role.
TOKEN_VARIABLE: Final = f"{ENV_PREFIX}TOKEN"
ROLE_PASSWORD_VARIABLE: Final = f"{ENV_PREFIX}ROLE_PASSWORD"
COMMAND_VARIABLES: Final = frozenset({TOKEN_VARIABLE, ROLE_PASSWORD_VARIABLE})
