<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1" language="zh_CN" sourcelanguage="en">
<context>
    <name>App</name>
    <message>
        <source>Connection lost</source>
        <extracomment>Parts of the core that are imported once the app is there, beside the event loop. What the desktop gets to say how it looks before the window appears.</extracomment>
        <translation>连接已断开</translation>
    </message>
    <message>
        <source>Reconnecting to {gateway}.</source>
        <translation>正在重新连接 {gateway}。</translation>
    </message>
    <message>
        <source>Connected again</source>
        <translation>已重新连接</translation>
    </message>
</context>
<context>
    <name>ChecksPage</name>
    <message>
        <source>Check a&amp;gain</source>
        <translation>重新检查(&amp;G)</translation>
    </message>
    <message>
        <source>Results</source>
        <translation>结果</translation>
    </message>
    <message>
        <source>Checking…</source>
        <translation>正在检查…</translation>
    </message>
</context>
<context>
    <name>ClearableLine</name>
    <message>
        <source>Clear</source>
        <translation>清除</translation>
    </message>
</context>
<context>
    <name>DefectDialog</name>
    <message>
        <source>qvpn has a defect</source>
        <translation>qvpn 出现缺陷</translation>
    </message>
    <message>
        <source>Something went wrong in qvpn</source>
        <translation>qvpn 内部出了问题</translation>
    </message>
    <message>
        <source>This is a defect of the app. Your session goes on if it was up. If something no longer works, quit qvpn: your network is put back as it was.</source>
        <translation>这是应用的缺陷。已建立的会话会继续。如果有功能失灵，请退出 qvpn：网络会恢复原状。</translation>
    </message>
    <message>
        <source>Report</source>
        <translation>报告</translation>
    </message>
    <message>
        <source>&amp;Copy report</source>
        <translation>复制报告(&amp;C)</translation>
    </message>
    <message>
        <source>&amp;Quit qvpn</source>
        <translation>退出 qvpn(&amp;Q)</translation>
    </message>
    <message>
        <source>C&amp;ontinue</source>
        <translation>继续(&amp;O)</translation>
    </message>
</context>
<context>
    <name>DetailsCard</name>
    <message>
        <source>{name}: {value}</source>
        <translation>{name}：{value}</translation>
    </message>
    <message>
        <source>Name servers</source>
        <translation>域名服务器</translation>
    </message>
    <message>
        <source>Your addresses</source>
        <translation>您的地址</translation>
    </message>
    <message>
        <source>Round trip</source>
        <translation>往返时间</translation>
    </message>
    <message>
        <source>Lost packets</source>
        <translation>丢失的数据包</translation>
    </message>
    <message>
        <source>Largest packet</source>
        <translation>最大数据包</translation>
    </message>
    <message>
        <source>{number} bytes</source>
        <translation>{number} 字节</translation>
    </message>
    <message>
        <source>Transport</source>
        <translation>传输方式</translation>
    </message>
    <message>
        <source>Good to know</source>
        <translation>值得留意</translation>
    </message>
    <message>
        <source>QUIC over UDP</source>
        <translation>基于 UDP 的 QUIC</translation>
    </message>
    <message>
        <source>TLS over TCP</source>
        <translation>基于 TCP 的 TLS</translation>
    </message>
</context>
<context>
    <name>DiagnosticsDialog</name>
    <message>
        <source>Diagnostics</source>
        <extracomment>Bytes of a log that are shown, from its end.</extracomment>
        <translation>诊断</translation>
    </message>
    <message>
        <source>&amp;Checks</source>
        <translation>检查(&amp;C)</translation>
    </message>
    <message>
        <source>&amp;Log</source>
        <translation>日志(&amp;L)</translation>
    </message>
    <message>
        <source>&amp;Report</source>
        <translation>报告(&amp;R)</translation>
    </message>
    <message>
        <source>Cl&amp;ose</source>
        <translation>关闭(&amp;O)</translation>
    </message>
    <message>
        <source>Save the report</source>
        <translation>保存报告</translation>
    </message>
    <message>
        <source>Saved as {file}.</source>
        <translation>已保存为 {file}。</translation>
    </message>
</context>
<context>
    <name>DiagnosticsWords</name>
    <message>
        <source>The helper that changes the network</source>
        <translation>更改网络的辅助程序</translation>
    </message>
    <message>
        <source>Asking for permission</source>
        <translation>请求授权</translation>
    </message>
    <message>
        <source>Tunnel device</source>
        <translation>隧道设备</translation>
    </message>
    <message>
        <source>Clock</source>
        <translation>时钟</translation>
    </message>
    <message>
        <source>Leftovers of earlier sessions</source>
        <translation>先前会话的残留</translation>
    </message>
    <message>
        <source>Kill switch</source>
        <translation>断网保护</translation>
    </message>
    <message>
        <source>Names (DNS)</source>
        <translation>域名 (DNS)</translation>
    </message>
    <message>
        <source>Reaching the gateway over UDP</source>
        <translation>通过 UDP 访问网关</translation>
    </message>
    <message>
        <source>Packet size</source>
        <translation>数据包大小</translation>
    </message>
    <message>
        <source>Traffic outside the tunnel</source>
        <translation>绕过隧道的流量</translation>
    </message>
    <message>
        <source>Icon in the panel</source>
        <translation>面板图标</translation>
    </message>
    <message>
        <source>Good</source>
        <translation>正常</translation>
    </message>
    <message>
        <source>Not known</source>
        <translation>未知</translation>
    </message>
    <message>
        <source>Needs attention</source>
        <translation>请留意</translation>
    </message>
    <message>
        <source>Problem</source>
        <translation>问题</translation>
    </message>
    <message numerus="yes">
        <source>%n problem(s) found.</source>
        <translation>
            <numerusform>发现 %n 个问题。</numerusform>
        </translation>
    </message>
    <message numerus="yes">
        <source>No problem found, %n thing(s) to look at.</source>
        <translation>
            <numerusform>未发现问题，有 %n 项请留意。</numerusform>
        </translation>
    </message>
    <message>
        <source>No problem found.</source>
        <translation>未发现问题。</translation>
    </message>
</context>
<context>
    <name>FirstRunPage</name>
    <message>
        <source>Welcome</source>
        <translation>欢迎</translation>
    </message>
    <message>
        <source>Paste the invite you received from whoever runs your gateway. This device then makes a key of its own, which never leaves it.</source>
        <translation>请粘贴网关运营者给您的邀请。本设备随后生成自己的密钥，密钥永不离开本设备。</translation>
    </message>
</context>
<context>
    <name>InviteForm</name>
    <message>
        <source>&amp;Open a file…</source>
        <translation>打开文件(&amp;O)…</translation>
    </message>
    <message>
        <source>qvpn://…</source>
        <translation>qvpn://…</translation>
    </message>
    <message>
        <source>Invite</source>
        <translation>邀请</translation>
    </message>
    <message>
        <source>&amp;Name on this computer</source>
        <translation>在本机上的名称(&amp;N)</translation>
    </message>
    <message>
        <source>You can also drop a file here.</source>
        <translation>也可以把文件拖到这里。</translation>
    </message>
    <message>
        <source>{file} cannot be read: {why}</source>
        <translation>无法读取 {file}：{why}</translation>
    </message>
    <message>
        <source>Open an invite</source>
        <translation>打开邀请</translation>
    </message>
    <message>
        <source>Registering this device with the gateway…</source>
        <translation>正在向网关注册此设备…</translation>
    </message>
    <message>
        <source>Adding…</source>
        <translation>正在添加…</translation>
    </message>
    <message>
        <source>&amp;Add this gateway</source>
        <translation>添加此网关(&amp;A)</translation>
    </message>
    <message>
        <source>Invite to {gateway}.</source>
        <translation>{gateway} 的邀请。</translation>
    </message>
    <message>
        <source>Invite to {gateway}, good until {when}.</source>
        <translation>{gateway} 的邀请，有效期至 {when}。</translation>
    </message>
</context>
<context>
    <name>KillSwitchMenu</name>
    <message>
        <source>&amp;Kill switch</source>
        <translation>断网保护(&amp;K)</translation>
    </message>
    <message>
        <source>Off</source>
        <translation>关闭</translation>
    </message>
    <message>
        <source>While connected</source>
        <translation>连接期间</translation>
    </message>
    <message>
        <source>Always</source>
        <translation>始终</translation>
    </message>
</context>
<context>
    <name>LinesTable</name>
    <message>
        <source>Destination</source>
        <translation>目标</translation>
    </message>
    <message>
        <source>Exception</source>
        <translation>例外</translation>
    </message>
    <message>
        <source>Comment</source>
        <translation>注释</translation>
    </message>
    <message>
        <source>a comment</source>
        <translation>一条注释</translation>
    </message>
    <message>
        <source>an exception</source>
        <translation>例外</translation>
    </message>
    <message>
        <source>no exception</source>
        <translation>非例外</translation>
    </message>
    <message>
        <source>no comment</source>
        <translation>无注释</translation>
    </message>
</context>
<context>
    <name>LogPage</name>
    <message>
        <source>This app</source>
        <translation>本应用</translation>
    </message>
    <message>
        <source>qvpn up</source>
        <translation>qvpn up</translation>
    </message>
    <message>
        <source>All</source>
        <translation>全部</translation>
    </message>
    <message>
        <source>Normal</source>
        <translation>一般</translation>
    </message>
    <message>
        <source>Warnings</source>
        <translation>警告</translation>
    </message>
    <message>
        <source>Errors</source>
        <translation>错误</translation>
    </message>
    <message>
        <source>Filter</source>
        <translation>筛选</translation>
    </message>
    <message>
        <source>Log</source>
        <translation>日志</translation>
    </message>
    <message>
        <source>So&amp;urce</source>
        <translation>来源(&amp;U)</translation>
    </message>
    <message>
        <source>Le&amp;vel</source>
        <translation>级别(&amp;V)</translation>
    </message>
    <message>
        <source>No entries.</source>
        <translation>没有条目。</translation>
    </message>
</context>
<context>
    <name>MainWindow</name>
    <message>
        <source>Menu</source>
        <extracomment>Of a window that shows all of a session, in device-independent pixels. The user wants to see all profiles.</extracomment>
        <translation>菜单</translation>
    </message>
    <message>
        <source>&amp;Profiles…</source>
        <translation>配置(&amp;P)…</translation>
    </message>
    <message>
        <source>&amp;Quit</source>
        <translation>退出(&amp;Q)</translation>
    </message>
    <message>
        <source>Profile {name}</source>
        <extracomment>Before this one, dialogs add their own.</extracomment>
        <translation>配置 {name}</translation>
    </message>
    <message>
        <source>&amp;Add or change…</source>
        <translation>添加或更改(&amp;A)…</translation>
    </message>
</context>
<context>
    <name>Opener</name>
    <message>
        <source>What uses the &amp;tunnel…</source>
        <translation>哪些流量走隧道(&amp;T)…</translation>
    </message>
    <message>
        <source>&amp;Connect as…</source>
        <translation>连接方式(&amp;C)…</translation>
    </message>
    <message>
        <source>&amp;Settings…</source>
        <translation>设置(&amp;S)…</translation>
    </message>
    <message>
        <source>&amp;Diagnostics…</source>
        <translation>诊断(&amp;D)…</translation>
    </message>
</context>
<context>
    <name>ProblemCard</name>
    <message>
        <source>Try &amp;now</source>
        <extracomment>The user wants the block of the kill switch to end. The user does not want to wait for the next attempt. The user wants to see the network&apos;s sign-in page. The user wants a proxy instead of a tunnel. The user wants to paste a new invite.</extracomment>
        <translation>立即重试(&amp;N)</translation>
    </message>
    <message>
        <source>&amp;Network settings…</source>
        <translation>网络设置(&amp;N)…</translation>
    </message>
    <message>
        <source>Open the &amp;sign-in page</source>
        <translation>打开登录页面(&amp;S)</translation>
    </message>
    <message>
        <source>&amp;Release the block</source>
        <translation>解除阻断(&amp;R)</translation>
    </message>
    <message>
        <source>Use a new &amp;invite…</source>
        <translation>使用新邀请(&amp;I)…</translation>
    </message>
    <message>
        <source>Use a &amp;proxy instead…</source>
        <translation>改用代理(&amp;P)…</translation>
    </message>
    <message>
        <source>Copy &amp;details</source>
        <translation>复制详情(&amp;D)</translation>
    </message>
    <message>
        <source>Copied</source>
        <translation>已复制</translation>
    </message>
</context>
<context>
    <name>ProfilesDialog</name>
    <message>
        <source>&amp;Add…</source>
        <extracomment>A profile was added by an invite: its name.</extracomment>
        <translation>添加(&amp;A)…</translation>
    </message>
    <message>
        <source>&amp;Rename</source>
        <translation>重命名(&amp;R)</translation>
    </message>
    <message>
        <source>&amp;Export…</source>
        <translation>导出(&amp;E)…</translation>
    </message>
    <message>
        <source>&amp;Delete…</source>
        <translation>删除(&amp;D)…</translation>
    </message>
    <message>
        <source>&amp;Connect this profile when qvpn starts</source>
        <translation>qvpn 启动时连接此配置(&amp;C)</translation>
    </message>
    <message>
        <source>&amp;Start qvpn when I log in</source>
        <translation>登录时启动 qvpn(&amp;S)</translation>
    </message>
    <message>
        <source>Profiles</source>
        <translation>配置</translation>
    </message>
    <message>
        <source>Paste the invite for another gateway</source>
        <translation>粘贴另一个网关的邀请</translation>
    </message>
    <message>
        <source>&amp;Back</source>
        <translation>返回(&amp;B)</translation>
    </message>
    <message>
        <source>Disconnect first</source>
        <translation>请先断开连接</translation>
    </message>
    <message>
        <source>Gateway: {gateway}</source>
        <translation>网关：{gateway}</translation>
    </message>
    <message>
        <source>This device is called {name} there</source>
        <translation>此设备在那里名为 {name}</translation>
    </message>
    <message>
        <source>Signs in with a token</source>
        <translation>以令牌登录</translation>
    </message>
    <message>
        <source>The key is in a file that only you can read</source>
        <translation>密钥位于只有您能读取的文件中</translation>
    </message>
    <message>
        <source>The key is in the desktop&apos;s password store</source>
        <translation>密钥位于桌面的密码库中</translation>
    </message>
    <message>
        <source>Question</source>
        <translation>询问</translation>
    </message>
    <message>
        <source>Delete profile</source>
        <translation>删除配置</translation>
    </message>
    <message>
        <source>Delete {name} and its key?</source>
        <translation>删除 {name} 及其密钥？</translation>
    </message>
    <message>
        <source>To connect again you need a new invite from whoever runs the gateway.</source>
        <translation>要再次连接，需要网关运营者的新邀请。</translation>
    </message>
    <message>
        <source>&amp;Delete</source>
        <translation>删除(&amp;D)</translation>
    </message>
    <message>
        <source>Export without the key</source>
        <translation>导出（不含密钥）</translation>
    </message>
</context>
<context>
    <name>ProgressCard</name>
    <message>
        <source>now</source>
        <translation>进行中</translation>
    </message>
    <message>
        <source>done</source>
        <translation>已完成</translation>
    </message>
    <message>
        <source>not yet</source>
        <translation>尚未</translation>
    </message>
</context>
<context>
    <name>ProxyCard</name>
    <message>
        <source>Enter these in the network settings of your programs.</source>
        <translation>请在程序的网络设置中填写这些地址。</translation>
    </message>
    <message>
        <source>Copy</source>
        <translation>复制</translation>
    </message>
    <message>
        <source>{name}: {value}</source>
        <translation>{name}：{value}</translation>
    </message>
    <message>
        <source>Copy {address}</source>
        <translation>复制 {address}</translation>
    </message>
    <message>
        <source>Copied</source>
        <translation>已复制</translation>
    </message>
</context>
<context>
    <name>ProxyDialog</name>
    <message>
        <source>&amp;Tunnel</source>
        <translation>隧道(&amp;T)</translation>
    </message>
    <message>
        <source>&amp;Proxy only (no administrator rights)</source>
        <translation>仅代理（无需管理员权限）(&amp;P)</translation>
    </message>
    <message>
        <source>none; for example {address}</source>
        <translation>无；例如 {address}</translation>
    </message>
    <message>
        <source>&amp;SOCKS proxy at</source>
        <translation>SOCKS 代理地址(&amp;S)</translation>
    </message>
    <message>
        <source>&amp;HTTP proxy at</source>
        <translation>HTTP 代理地址(&amp;H)</translation>
    </message>
    <message>
        <source>&amp;Forwards</source>
        <translation>转发(&amp;F)</translation>
    </message>
    <message>
        <source>One per line: a port of this computer, then the host and port behind the gateway that it leads to.</source>
        <translation>每行一条：本机端口，然后是它通向的网关后的主机和端口。</translation>
    </message>
    <message>
        <source>For all programs, or for the destinations that you choose.</source>
        <translation>用于所有程序，或您选择的目标。</translation>
    </message>
    <message>
        <source>Only for programs that you set up for it; everything else on this computer goes directly.</source>
        <translation>仅用于您为其设置的程序；本机其余流量直连。</translation>
    </message>
    <message>
        <source>Connect as: {name}</source>
        <translation>连接方式：{name}</translation>
    </message>
</context>
<context>
    <name>ReportPage</name>
    <message>
        <source>Report</source>
        <translation>报告</translation>
    </message>
    <message>
        <source>&amp;Save…</source>
        <translation>保存(&amp;S)…</translation>
    </message>
    <message>
        <source>This is the whole report. Placeholders stand for names, addresses and keys, the same one each time. It goes nowhere but where you save it.</source>
        <translation>这就是完整的报告。名称、地址和密钥均以代号代替，相同内容使用相同代号。它只会保存到您选择的位置。</translation>
    </message>
</context>
<context>
    <name>RouteWords</name>
    <message>
        <source>Tunnel</source>
        <translation>隧道</translation>
    </message>
    <message>
        <source>Direct</source>
        <translation>直连</translation>
    </message>
    <message>
        <source>Blocked</source>
        <translation>已阻断</translation>
    </message>
    <message>
        <source>The gateway carries it</source>
        <translation>网关可转发</translation>
    </message>
    <message>
        <source>Your list keeps it out</source>
        <translation>您的列表将其排除</translation>
    </message>
    <message>
        <source>Your local network</source>
        <translation>您的本地网络</translation>
    </message>
    <message>
        <source>Means this computer or its own link</source>
        <translation>指本机或其自身链路</translation>
    </message>
    <message>
        <source>The tunnel lacks this IP version; directly it would leak</source>
        <translation>隧道不支持此 IP 版本；直连会泄漏</translation>
    </message>
    <message>
        <source>The gateway does not carry it</source>
        <translation>网关不转发</translation>
    </message>
    <message>
        <source>lan (your local network)</source>
        <translation>lan（您的本地网络）</translation>
    </message>
    <message>
        <source>This destination is listed twice.</source>
        <translation>此目标重复列出。</translation>
    </message>
    <message>
        <source>{other} covers this already.</source>
        <translation>{other} 已包含此项。</translation>
    </message>
    <message>
        <source>The same destination is listed the other way too ({other}): remove one.</source>
        <translation>同一目标也以相反方向列出 ({other})：请移除其一。</translation>
    </message>
    <message>
        <source>Nothing in the list covers this, so it is no exception.</source>
        <translation>列表中没有包含此项的条目，因此它不是例外。</translation>
    </message>
    <message>
        <source>This name has no address now, so it has no effect.</source>
        <translation>此名称目前没有地址，因此不起作用。</translation>
    </message>
    <message>
        <source>Your local network can be kept out of the tunnel, not sent into it.</source>
        <translation>本地网络只能排除在隧道之外，不能送入隧道。</translation>
    </message>
    <message>
        <source>The gateway does not carry this: what belongs there will be blocked.</source>
        <translation>网关不转发此目标：相应流量会被阻断。</translation>
    </message>
    <message>
        <source>{address} uses the tunnel</source>
        <translation>{address} 走隧道</translation>
    </message>
    <message>
        <source>{address} goes directly</source>
        <translation>{address} 直连</translation>
    </message>
    <message>
        <source>{address} is blocked</source>
        <translation>{address} 被阻断</translation>
    </message>
    <message>
        <source>Outside the tunnel, the kill switch blocks it.</source>
        <translation>在隧道之外，断网保护会阻断它。</translation>
    </message>
    <message>
        <source>Nothing that uses the tunnel covers it.</source>
        <translation>走隧道的条目均不包含它。</translation>
    </message>
    <message>
        <source>It is this device&apos;s own address.</source>
        <translation>这是本设备自己的地址。</translation>
    </message>
    <message>
        <source>Your line {line} wants it, the gateway does not carry it.</source>
        <translation>您的条目 {line} 需要它，但网关不转发。</translation>
    </message>
    <message>
        <source>Your line {line} says so.</source>
        <translation>依据您的条目 {line}。</translation>
    </message>
    <message>
        <source>The gateway carries {rule}, and no line says otherwise.</source>
        <translation>网关转发 {rule}，且没有条目另作规定。</translation>
    </message>
</context>
<context>
    <name>RoutesDialog</name>
    <message>
        <source>What uses the tunnel: {name}</source>
        <extracomment>Milliseconds without a key after which what is typed is looked at. Bytes of a file that is imported. Addresses of a name that are answered for. The list was applied. What the names were when the list was stored, and what they are now.</extracomment>
        <translation>哪些流量走隧道：{name}</translation>
    </message>
    <message>
        <source>Looking up names…</source>
        <translation>正在查询名称…</translation>
    </message>
    <message>
        <source>Names are looked up again each time you connect.</source>
        <translation>每次连接时都会重新查询名称。</translation>
    </message>
    <message>
        <source>Looking up {name}…</source>
        <translation>正在查询 {name}…</translation>
    </message>
    <message>
        <source>{name} has no address.</source>
        <translation>{name} 没有地址。</translation>
    </message>
    <message>
        <source>Import destinations</source>
        <translation>导入目标</translation>
    </message>
    <message>
        <source>it is not a text file</source>
        <translation>不是文本文件</translation>
    </message>
    <message>
        <source>{file} cannot be read: {why}</source>
        <translation>无法读取 {file}：{why}</translation>
    </message>
    <message>
        <source>Line {line} of {file}: {why}</source>
        <translation>{file} 第 {line} 行：{why}</translation>
    </message>
    <message>
        <source>Export destinations</source>
        <translation>导出目标</translation>
    </message>
    <message>
        <source>{file} cannot be written: {why}</source>
        <translation>无法写入 {file}：{why}</translation>
    </message>
</context>
<context>
    <name>RoutesTable</name>
    <message>
        <source>Network</source>
        <translation>网络</translation>
    </message>
    <message>
        <source>Goes</source>
        <translation>去向</translation>
    </message>
    <message>
        <source>Why</source>
        <translation>原因</translation>
    </message>
</context>
<context>
    <name>RoutesView</name>
    <message>
        <source>&amp;Everything</source>
        <extracomment>Pixels below which what comes of the list stands under it.</extracomment>
        <translation>全部(&amp;E)</translation>
    </message>
    <message>
        <source>&amp;Only these</source>
        <translation>仅限以下(&amp;O)</translation>
    </message>
    <message>
        <source>Everything e&amp;xcept these</source>
        <translation>除以下之外(&amp;X)</translation>
    </message>
    <message>
        <source>&amp;Add</source>
        <translation>添加(&amp;A)</translation>
    </message>
    <message>
        <source>&amp;Remove</source>
        <translation>移除(&amp;R)</translation>
    </message>
    <message>
        <source>&amp;Import…</source>
        <translation>导入(&amp;I)…</translation>
    </message>
    <message>
        <source>Ex&amp;port…</source>
        <translation>导出(&amp;P)…</translation>
    </message>
    <message>
        <source>Pre&amp;sets</source>
        <translation>预设(&amp;S)</translation>
    </message>
    <message>
        <source>&amp;Private networks</source>
        <translation>私有网络(&amp;P)</translation>
    </message>
    <message>
        <source>Your &amp;local network, whatever it is</source>
        <translation>当前本地网络(&amp;L)</translation>
    </message>
    <message>
        <source>What the &amp;gateway offers</source>
        <translation>网关提供的网络(&amp;G)</translation>
    </message>
    <message>
        <source>Nothing is listed yet. Add a destination above, or choose a preset.</source>
        <translation>列表为空。请在上方添加目标，或选择预设。</translation>
    </message>
    <message>
        <source>O&amp;K</source>
        <translation>确定(&amp;K)</translation>
    </message>
    <message>
        <source>App&amp;ly</source>
        <translation>应用(&amp;L)</translation>
    </message>
    <message>
        <source>&amp;Cancel</source>
        <translation>取消(&amp;C)</translation>
    </message>
    <message>
        <source>What the gateway carries is known once you are connected. Until then, this assumes that it carries everything.</source>
        <translation>连接后才能得知网关转发哪些网络；在此之前按全部转发显示。</translation>
    </message>
    <message>
        <source>Everything else goes directly.</source>
        <translation>其余流量直连。</translation>
    </message>
    <message>
        <source>The most specific network decides.</source>
        <translation>以最精确的网络为准。</translation>
    </message>
    <message>
        <source>Problem</source>
        <translation>问题</translation>
    </message>
    <message>
        <source>Network, address or name, e.g. 10.0.0.0/8</source>
        <translation>网络、地址或名称，例如 10.0.0.0/8</translation>
    </message>
    <message>
        <source>Destination to add</source>
        <translation>要添加的目标</translation>
    </message>
    <message>
        <source>Destinations</source>
        <translation>目标</translation>
    </message>
    <message>
        <source>&amp;Where would this go?</source>
        <translation>这会走哪条路？(&amp;W)</translation>
    </message>
    <message>
        <source>An address or a name</source>
        <translation>地址或名称</translation>
    </message>
    <message>
        <source>Where would this go?</source>
        <translation>这会走哪条路？</translation>
    </message>
    <message>
        <source>Resulting routes</source>
        <translation>最终路由</translation>
    </message>
    <message>
        <source>All traffic of this computer uses the tunnel.</source>
        <translation>本机所有流量都走隧道。</translation>
    </message>
    <message>
        <source>What is listed uses the tunnel, exceptions do not. The most specific line decides, in whatever order.</source>
        <translation>列出的目标走隧道，例外除外。以最精确的条目为准，与顺序无关。</translation>
    </message>
    <message>
        <source>What is listed goes directly, exceptions do not. The most specific line decides, in whatever order.</source>
        <translation>列出的目标直连，例外除外。以最精确的条目为准，与顺序无关。</translation>
    </message>
</context>
<context>
    <name>SessionPage</name>
    <message>
        <source>Please wait…</source>
        <extracomment>The user wants to see or change which destinations use the tunnel. The user wants to choose between a tunnel and a proxy. The user wants to paste a new invite. What has a meaning for a tunnel only.</extracomment>
        <translation>请稍候…</translation>
    </message>
    <message>
        <source>&amp;Cancel</source>
        <translation>取消(&amp;C)</translation>
    </message>
    <message>
        <source>&amp;Disconnect</source>
        <translation>断开(&amp;D)</translation>
    </message>
    <message>
        <source>&amp;Try again</source>
        <translation>重试(&amp;T)</translation>
    </message>
    <message>
        <source>&amp;Connect</source>
        <translation>连接(&amp;C)</translation>
    </message>
    <message>
        <source>Connect &amp;as</source>
        <translation>连接方式(&amp;A)</translation>
    </message>
    <message>
        <source>Proxy only</source>
        <translation>仅代理</translation>
    </message>
    <message>
        <source>Tunnel</source>
        <translation>隧道</translation>
    </message>
    <message>
        <source>&amp;What uses the tunnel</source>
        <translation>哪些流量走隧道(&amp;W)</translation>
    </message>
    <message>
        <source>&amp;Kill switch</source>
        <translation>断网保护(&amp;K)</translation>
    </message>
</context>
<context>
    <name>SettingWords</name>
    <message>
        <source>&amp;Kill switch</source>
        <translation>断网保护(&amp;K)</translation>
    </message>
    <message>
        <source>What happens to the tunnel&apos;s traffic while the tunnel is down.</source>
        <translation>隧道未建立时，应走隧道的流量如何处理。</translation>
    </message>
    <message>
        <source>Off</source>
        <translation>关闭</translation>
    </message>
    <message>
        <source>When qvpn gives up on the connection, traffic goes directly to the internet.</source>
        <translation>qvpn 放弃连接后，流量将直连互联网。</translation>
    </message>
    <message>
        <source>While connected</source>
        <translation>连接期间</translation>
    </message>
    <message>
        <source>From the moment you connect until you disconnect, nothing leaves outside the tunnel, even if qvpn crashes.</source>
        <translation>从连接到断开期间，任何流量都不会绕过隧道，即使 qvpn 崩溃。</translation>
    </message>
    <message>
        <source>Always</source>
        <translation>始终</translation>
    </message>
    <message>
        <source>Nothing leaves outside the tunnel, even after this computer restarts, until you release the block.</source>
        <translation>任何流量都不会绕过隧道，重启本机后依然如此，直到您解除阻断。</translation>
    </message>
    <message>
        <source>Reach the &amp;local network</source>
        <translation>访问本地网络(&amp;L)</translation>
    </message>
    <message>
        <source>Printers and other devices near you stay in reach, outside the tunnel. Leave it off in networks that you do not trust.</source>
        <translation>附近的打印机等设备可在隧道外访问。在不信任的网络中请保持关闭。</translation>
    </message>
    <message>
        <source>Use the gateway&apos;s &amp;name servers</source>
        <translation>使用网关的域名服务器(&amp;N)</translation>
    </message>
    <message>
        <source>The names of sites that you visit are looked up through the tunnel. Otherwise, your network&apos;s name servers see them.</source>
        <translation>您访问的名称将通过隧道查询；否则您所在网络的域名服务器会看到它们。</translation>
    </message>
    <message>
        <source>&amp;Transport</source>
        <translation>传输方式(&amp;T)</translation>
    </message>
    <message>
        <source>How packets travel to the gateway.</source>
        <translation>数据包如何到达网关。</translation>
    </message>
    <message>
        <source>Automatic</source>
        <translation>自动</translation>
    </message>
    <message>
        <source>QUIC where the network lets it through, else TLS.</source>
        <translation>网络允许时用 QUIC，否则用 TLS。</translation>
    </message>
    <message>
        <source>QUIC over UDP</source>
        <translation>基于 UDP 的 QUIC</translation>
    </message>
    <message>
        <source>The fastest; some networks block it.</source>
        <translation>最快；部分网络会阻断它。</translation>
    </message>
    <message>
        <source>TLS over TCP</source>
        <translation>基于 TCP 的 TLS</translation>
    </message>
    <message>
        <source>Slower; works almost everywhere.</source>
        <translation>较慢；几乎处处可用。</translation>
    </message>
    <message>
        <source>Sho&amp;w notifications</source>
        <translation>显示通知(&amp;W)</translation>
    </message>
    <message>
        <source>Only for changes that you did not cause yourself.</source>
        <translation>仅针对并非由您自己引起的变化。</translation>
    </message>
    <message>
        <source>Lan&amp;guage</source>
        <translation>语言(&amp;G)</translation>
    </message>
    <message>
        <source>Takes effect the next time qvpn starts.</source>
        <translation>下次启动 qvpn 时生效。</translation>
    </message>
    <message>
        <source>Same as the desktop</source>
        <translation>跟随桌面</translation>
    </message>
    <message>
        <source>L&amp;og</source>
        <translation>日志(&amp;O)</translation>
    </message>
    <message>
        <source>How much is recorded to help find the cause of a problem.</source>
        <translation>为排查问题记录多少内容。</translation>
    </message>
    <message>
        <source>Problems only</source>
        <translation>仅问题</translation>
    </message>
    <message>
        <source>Normal</source>
        <translation>一般</translation>
    </message>
    <message>
        <source>Everything</source>
        <translation>全部</translation>
    </message>
</context>
<context>
    <name>SettingsDialog</name>
    <message>
        <source>Settings</source>
        <translation>设置</translation>
    </message>
    <message>
        <source>The kill switch and the local network apply at once, the rest from the next connection.</source>
        <translation>断网保护和本地网络立即生效，其余自下次连接起生效。</translation>
    </message>
    <message>
        <source>This app</source>
        <translation>本应用</translation>
    </message>
    <message>
        <source>Gateway {name}</source>
        <translation>网关 {name}</translation>
    </message>
</context>
<context>
    <name>TrafficCard</name>
    <message>
        <source>last 2 minutes</source>
        <translation>最近 2 分钟</translation>
    </message>
    <message>
        <source>Receiving {rate}</source>
        <translation>接收 {rate}</translation>
    </message>
    <message>
        <source>Sending {rate}</source>
        <translation>发送 {rate}</translation>
    </message>
    <message>
        <source>Received in this session</source>
        <translation>本次会话已接收</translation>
    </message>
    <message>
        <source>Sent in this session</source>
        <translation>本次会话已发送</translation>
    </message>
    <message>
        <source>{name}: {value}</source>
        <translation>{name}：{value}</translation>
    </message>
    <message>
        <source>Traffic of the last two minutes</source>
        <translation>最近两分钟的流量</translation>
    </message>
    <message>
        <source>Receiving {down}, sending {up}</source>
        <translation>接收 {down}，发送 {up}</translation>
    </message>
</context>
<context>
    <name>TrayMenu</name>
    <message>
        <source>Open the &amp;sign-in page</source>
        <translation>打开登录页面(&amp;S)</translation>
    </message>
    <message>
        <source>Release the &amp;block</source>
        <translation>解除阻断(&amp;B)</translation>
    </message>
    <message>
        <source>&amp;Profile</source>
        <translation>配置(&amp;P)</translation>
    </message>
    <message>
        <source>&amp;Routes</source>
        <translation>路由(&amp;R)</translation>
    </message>
    <message>
        <source>&amp;Open qvpn</source>
        <translation>打开 qvpn(&amp;O)</translation>
    </message>
    <message>
        <source>&amp;Quit</source>
        <translation>退出(&amp;Q)</translation>
    </message>
    <message>
        <source>&amp;Disconnect</source>
        <translation>断开(&amp;D)</translation>
    </message>
    <message>
        <source>&amp;Try again</source>
        <translation>重试(&amp;T)</translation>
    </message>
    <message>
        <source>&amp;Connect</source>
        <translation>连接(&amp;C)</translation>
    </message>
    <message>
        <source>&amp;Choose…</source>
        <translation>选择(&amp;C)…</translation>
    </message>
</context>
<context>
    <name>Words</name>
    <message>
        <source>Not connected</source>
        <extracomment>States that mean something else for a proxy. One of `qvpn_core.client.explain.warnings`.</extracomment>
        <translation>未连接</translation>
    </message>
    <message>
        <source>Connecting…</source>
        <translation>正在连接…</translation>
    </message>
    <message>
        <source>Protected</source>
        <translation>已受保护</translation>
    </message>
    <message>
        <source>Connected</source>
        <translation>已连接</translation>
    </message>
    <message>
        <source>Reconnecting…</source>
        <translation>正在重新连接…</translation>
    </message>
    <message>
        <source>Disconnecting…</source>
        <translation>正在断开…</translation>
    </message>
    <message>
        <source>Blocked</source>
        <translation>已阻断</translation>
    </message>
    <message>
        <source>Connection failed</source>
        <translation>连接失败</translation>
    </message>
    <message>
        <source>The tunnel of {user} decides where your traffic goes.</source>
        <translation>{user} 的隧道决定您的流量去向。</translation>
    </message>
    <message>
        <source>Your traffic goes directly to the internet.</source>
        <translation>您的流量直连互联网。</translation>
    </message>
    <message>
        <source>Waiting for your permission.</source>
        <translation>正在等待您的许可。</translation>
    </message>
    <message>
        <source>Setting up the tunnel.</source>
        <translation>正在建立隧道。</translation>
    </message>
    <message>
        <source>Traffic for the tunnel waits. Nothing leaves outside it.</source>
        <translation>应走隧道的流量会等待，不会绕过隧道。</translation>
    </message>
    <message>
        <source>Putting your network back as it was.</source>
        <translation>正在恢复您的网络。</translation>
    </message>
    <message>
        <source>The kill switch lets nothing out until you decide.</source>
        <translation>在您作出决定之前，断网保护不放行任何流量。</translation>
    </message>
    <message>
        <source>Programs that use the proxy reach the gateway, others go directly.</source>
        <translation>使用代理的程序经由网关，其他程序直连。</translation>
    </message>
    <message>
        <source>Programs that use the proxy have to wait.</source>
        <translation>使用代理的程序需要等待。</translation>
    </message>
    <message>
        <source>Ending the proxy.</source>
        <translation>正在结束代理。</translation>
    </message>
    <message>
        <source>Connecting to the gateway.</source>
        <translation>正在连接网关。</translation>
    </message>
    <message numerus="yes">
        <source>%n network(s) use the tunnel, the rest goes directly.</source>
        <translation>
            <numerusform>%n 个网络走隧道，其余直连。</numerusform>
        </translation>
    </message>
    <message>
        <source>What the gateway carries uses the tunnel, the rest goes directly.</source>
        <translation>网关转发的流量走隧道，其余直连。</translation>
    </message>
    <message numerus="yes">
        <source>All traffic uses the tunnel, except %n network(s).</source>
        <translation>
            <numerusform>除 %n 个网络外，所有流量都走隧道。</numerusform>
        </translation>
    </message>
    <message>
        <source>All traffic uses the tunnel.</source>
        <translation>所有流量都走隧道。</translation>
    </message>
    <message>
        <source>since {time}</source>
        <translation>自 {time}</translation>
    </message>
    <message>
        <source>since {day}, {time}</source>
        <translation>自 {day} {time}</translation>
    </message>
    <message>
        <source>Ask for your permission</source>
        <translation>请求您的许可</translation>
    </message>
    <message>
        <source>Find the gateway</source>
        <translation>查找网关</translation>
    </message>
    <message>
        <source>Agree on encryption</source>
        <translation>协商加密</translation>
    </message>
    <message>
        <source>Identify this device</source>
        <translation>验证本设备</translation>
    </message>
    <message>
        <source>Receive addresses</source>
        <translation>接收地址</translation>
    </message>
    <message>
        <source>Set up routes</source>
        <translation>设置路由</translation>
    </message>
    <message>
        <source>{network} on {link} is out of reach. To keep it, switch on “Reach the local network” in the settings.</source>
        <translation>无法访问 {link} 上的 {network}。如需访问，请在设置中打开“访问本地网络”。</translation>
    </message>
    <message>
        <source>The gateway&apos;s name was not found</source>
        <translation>找不到网关的名称</translation>
    </message>
    <message>
        <source>The gateway does not answer</source>
        <translation>网关没有应答</translation>
    </message>
    <message>
        <source>This computer has no network connection</source>
        <translation>本机没有网络连接</translation>
    </message>
    <message>
        <source>This network wants you to sign in</source>
        <translation>此网络要求您先登录</translation>
    </message>
    <message>
        <source>This may not be your gateway</source>
        <translation>这可能不是您的网关</translation>
    </message>
    <message>
        <source>The gateway does not know this device</source>
        <translation>网关不认识此设备</translation>
    </message>
    <message>
        <source>The gateway refused the connection</source>
        <translation>网关拒绝了连接</translation>
    </message>
    <message>
        <source>This network cannot carry the tunnel</source>
        <translation>此网络无法承载隧道</translation>
    </message>
    <message>
        <source>The connection was lost</source>
        <translation>连接已丢失</translation>
    </message>
    <message>
        <source>The gateway broke the rules of the protocol</source>
        <translation>网关违反了协议</translation>
    </message>
    <message>
        <source>This device&apos;s key is not available</source>
        <translation>此设备的密钥不可用</translation>
    </message>
    <message>
        <source>Permission is missing</source>
        <translation>缺少权限</translation>
    </message>
    <message>
        <source>The tunnel device is not available</source>
        <translation>隧道设备不可用</translation>
    </message>
    <message>
        <source>Name servers could not be set</source>
        <translation>无法设置域名服务器</translation>
    </message>
    <message>
        <source>qvpn&apos;s helper is not installed</source>
        <translation>未安装 qvpn 的辅助程序</translation>
    </message>
    <message>
        <source>No service that grants permission is running</source>
        <translation>没有正在运行的授权服务</translation>
    </message>
    <message>
        <source>No program can ask you for permission</source>
        <translation>没有程序可以请求您授权</translation>
    </message>
    <message>
        <source>Permission was not given</source>
        <translation>未获得授权</translation>
    </message>
    <message>
        <source>qvpn&apos;s helper did not start</source>
        <translation>qvpn 的辅助程序未能启动</translation>
    </message>
    <message>
        <source>The app and its helper are of different versions</source>
        <translation>应用与其辅助程序版本不同</translation>
    </message>
    <message>
        <source>qvpn&apos;s helper has ended</source>
        <translation>qvpn 的辅助程序已退出</translation>
    </message>
    <message>
        <source>Somebody ended the session</source>
        <translation>有人结束了会话</translation>
    </message>
    <message>
        <source>Another tunnel is up on this computer</source>
        <translation>本机已有另一条隧道</translation>
    </message>
    <message>
        <source>This is not allowed</source>
        <translation>不允许此操作</translation>
    </message>
    <message>
        <source>This computer&apos;s network could not be set up</source>
        <translation>无法设置本机网络</translation>
    </message>
    <message>
        <source>Another program listens at this address</source>
        <translation>另一个程序正在监听此地址</translation>
    </message>
    <message>
        <source>This cannot be done</source>
        <translation>无法执行</translation>
    </message>
    <message>
        <source>The running session does not answer</source>
        <translation>正在运行的会话没有应答</translation>
    </message>
    <message>
        <source>The session ended unexpectedly</source>
        <translation>会话意外结束</translation>
    </message>
    <message>
        <source>There is no invite in this text</source>
        <translation>文本中没有邀请</translation>
    </message>
    <message>
        <source>There are several invites in this text</source>
        <translation>文本中有多个邀请</translation>
    </message>
    <message>
        <source>The invite is cut off</source>
        <translation>邀请不完整</translation>
    </message>
    <message>
        <source>The invite was changed on its way</source>
        <translation>邀请在传递中被更改</translation>
    </message>
    <message>
        <source>The invite is for a newer qvpn</source>
        <translation>邀请适用于更新版本的 qvpn</translation>
    </message>
    <message>
        <source>The invite has expired</source>
        <translation>邀请已过期</translation>
    </message>
    <message>
        <source>The gateway refused the invite</source>
        <translation>网关拒绝了邀请</translation>
    </message>
    <message>
        <source>qvpn has a defect</source>
        <translation>qvpn 出现缺陷</translation>
    </message>
    <message>
        <source>The connection failed</source>
        <translation>连接失败</translation>
    </message>
    <message>
        <source>{user} is connected on this computer. Ask {user} to disconnect; an administrator can end it with: qvpn unlock</source>
        <translation>{user} 已在本机连接。请让 {user} 断开连接；管理员可用以下命令结束：qvpn unlock</translation>
    </message>
    <message>
        <source>Sign in at {address}. qvpn lets your browser out for that and connects afterwards.</source>
        <translation>请在 {address} 登录。qvpn 会为此放行您的浏览器，之后再连接。</translation>
    </message>
    <message>
        <source>SOCKS proxy</source>
        <translation>SOCKS 代理</translation>
    </message>
    <message>
        <source>HTTP proxy</source>
        <translation>HTTP 代理</translation>
    </message>
    <message>
        <source>To {target}</source>
        <translation>到 {target}</translation>
    </message>
    <message numerus="yes">
        <source>Only %n network(s)</source>
        <translation>
            <numerusform>仅 %n 个网络</numerusform>
        </translation>
    </message>
    <message>
        <source>Everything</source>
        <translation>全部</translation>
    </message>
    <message>
        <source>{what}, except {count}</source>
        <translation>{what}，{count} 项除外</translation>
    </message>
    <message>
        <source>{number} ms</source>
        <translation>{number} 毫秒</translation>
    </message>
    <message>
        <source>below {number} %</source>
        <translation>低于 {number}%</translation>
    </message>
    <message>
        <source>{number} %</source>
        <translation>{number}%</translation>
    </message>
</context>
</TS>
