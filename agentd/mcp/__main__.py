import sys

from agentd.mcp.main import main

sys.exit(main())
