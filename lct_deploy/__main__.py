"""`python -m lct_deploy` is `lct-deploy`."""

from lct_deploy.cli import main

main()
