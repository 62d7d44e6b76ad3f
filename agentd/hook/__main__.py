import sys

from agentd.hook.main import main

sys.exit(main())
